"""What a server records, and how it is read again: events from the wire, snapshots of the state, features as served."""
