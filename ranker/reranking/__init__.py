"""What changes the order of a Recommend behind its scores: rules, diversity, at most so many of one value."""
