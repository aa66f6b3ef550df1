"""LightGBM's forests: the one parser of their text, and the scorer that is compiled from it."""
