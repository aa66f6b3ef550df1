"""From a prepared log to fitted boosters: stages, the pairwise objective, arms, restarts and tuning."""
