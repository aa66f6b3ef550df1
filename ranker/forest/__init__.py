"""LightGBM's model text, read once, and the compiled scorer made of it."""
