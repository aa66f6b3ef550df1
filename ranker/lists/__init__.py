"""What the lists of `Recommend` are worth: lists of a held-out future, beside peers and what the sources allow."""
