"""Any log through the TOML's SQL into DuckDB and out as arrays, and the durable log of recorded events."""
