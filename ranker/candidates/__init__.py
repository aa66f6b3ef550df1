"""Candidate sources, one a file, and what becomes of their proposals: filters and the merge."""
