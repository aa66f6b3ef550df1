"""Which items pre-training tells the next one from, and the losses of its heads over many events."""
