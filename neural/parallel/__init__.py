"""One network trained by several processes: what each reads of a batch, and what they exchange."""
