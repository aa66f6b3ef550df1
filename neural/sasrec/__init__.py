"""SASRec with gSASRec's loss: the next wanted item from the wanted ones before it, and nothing else."""

from neural.sasrec.plugin import SASRec

__all__ = ["SASRec"]
