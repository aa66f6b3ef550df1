"""Semantic ids: a few codes for each item, alike for like items, by residual quantisation."""

from neural.semantic_ids.plugin import SemanticIds

__all__ = ["SemanticIds"]
