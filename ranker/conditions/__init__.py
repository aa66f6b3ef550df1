"""Conditions on items and requests: SQL in the TOML, masks and arrays in a server."""
