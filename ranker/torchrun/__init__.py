"""The processes that one `torchrun` starts: the first one does all, the others take part in its fits."""
