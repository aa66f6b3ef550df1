"""What the columns of a stranger's log are, by names, types and values, and the TOML that says so."""
