"""What features are read from, in training and in serving: counters' timelines, histories, live events, snapshots."""
