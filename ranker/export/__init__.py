"""Pairs, training rows and the forest as files for other tools, and pairs from such files."""
