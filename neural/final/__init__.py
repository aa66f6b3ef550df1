"""The neural final ranker: a network over all the booster's columns, which orders Rank in its place."""

from neural.final.ranker import NetworkRanker

__all__ = ["NetworkRanker"]
