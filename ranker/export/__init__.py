"""Pairs, rows and the forest as files for other tools."""
