"""Several plugins in one report: each alone, all together, and what each adds to the rest."""
