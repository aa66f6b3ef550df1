"""LiMAML: a small network of each user's own, adapted by a few gradient steps to the user's events (MAML)."""

from neural.limaml.plugin import LiMAML

__all__ = ["LiMAML"]
