"""Studies: how the uplift grows with what a plugin is given, on any log, and on a generated one of known truth."""
