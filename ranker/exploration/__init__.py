"""A share of the lists in an order that is drawn, with the chance of each item given the items above it."""
