"""Who may call a server, and how much of it one caller may have: TLS, tokens, rights, limits."""
