"""Item2vec: items as words and sessions as sentences, by gensim's skip-gram."""

from neural.item2vec.plugin import Item2Vec

__all__ = ["Item2Vec"]
