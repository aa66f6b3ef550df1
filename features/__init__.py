"""What is known as of a time: event log, counters, point-in-time rows, snapshots, the plugin Protocol."""
