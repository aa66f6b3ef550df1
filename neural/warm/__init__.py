"""A fit of the towers that goes on from an earlier one: what is kept of its weights, and the few epochs over them."""
