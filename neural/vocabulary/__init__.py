"""What the networks read of a request's context and learn of feedback, as it was in the log of the fit."""
