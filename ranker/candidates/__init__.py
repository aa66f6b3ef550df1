"""What may be ranked: candidate sources, one a file, then how their proposals are merged and filtered."""
