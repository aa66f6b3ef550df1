"""The cross-encoder: history, context and candidate meet in one network, which scores each candidate of a request."""

from neural.cross_encoder.plugin import CrossEncoder

__all__ = ["CrossEncoder"]
