"""Candidate sources that a `[sources.NAME]` of the TOML names by their class, one a file."""
