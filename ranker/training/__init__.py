"""From the log of a TOML to fitted boosters: import, groups and pairs, plugins, objective, arms, retraining, tuning."""
