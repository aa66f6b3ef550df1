"""What is seen of a server: metrics, logs, traces."""
