"""How a client reaches a server: its messages, TLS, a token, and when a call is tried again."""
