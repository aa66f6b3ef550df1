"""The uplift report: what a plugin's columns bring to the ranker, with interval, controls and slices."""
