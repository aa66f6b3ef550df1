"""The loop closed: simulated users, a server that serves and records, and a training of what was recorded, by day."""
