"""What a server takes down: events that come in by the wire, snapshots of their state, features as served."""
