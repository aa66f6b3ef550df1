"""Numba's `njit`, with names of compiled code that no other process gives. Every kernel is compiled by this one.

Numba numbers what it compiles, from 1 on in every process, and the number alone tells functions apart that have the
same name and types: the parts of a sort and of an argsort of one kind of array, say. A kernel lies on disk as the
process that first met it compiled it. One that loads two such files of equal numbers links the calls of both to the
code of one, and orders by what is no order, or crashes (numba issue 10486, open; seen in 0.68). Numbers drawn at
random, in a fork anew, do not meet.
"""

import secrets

from numba import njit, prange
from numba.core.bytecode import FunctionIdentity

__all__ = ["njit", "prange"]

# Numba takes the next number of this iterator for each function. 62 bits: a number is a part of a name, and not read.
FunctionIdentity._unique_ids = iter(lambda: secrets.randbits(62), None)
