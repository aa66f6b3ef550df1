"""The search for better parameters: each part of the ranker by the figure that it is for."""
