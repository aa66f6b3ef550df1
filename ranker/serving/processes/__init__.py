"""Several processes of one server: who forks them and keeps them alive, and how they reach the one that records."""
