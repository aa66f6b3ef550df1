"""Where networks are trained, and one network by several processes: what each reads of a batch, what they exchange."""
