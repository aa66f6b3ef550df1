"""What serving holds (counters' timelines, histories, events that come in, snapshots) and how it is read."""
