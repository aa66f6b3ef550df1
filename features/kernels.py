"""What every kernel is made with: numba's `njit`, and a hint to the processor for rows that lie far apart in memory.

The names of what this `njit` compiles no other process gives. Numba numbers what it compiles, from 1 on in every
process, and the number alone tells functions apart that have the same name and types: the parts of a sort and of an
argsort of one kind of array, say. A kernel lies on disk as the process that first met it compiled it. One that loads
two such files of equal numbers links the calls of both to the code of one, and orders by what is no order, or crashes
(numba issue 10486, open; seen in 0.68). Numbers that are drawn at random, in a fork anew, do not meet.
"""

import secrets
from typing import Any

from llvmlite import ir
from numba import njit, prange
from numba.core import cgutils, types
from numba.core.bytecode import FunctionIdentity
from numba.extending import intrinsic

__all__ = ["AHEAD", "LINE", "njit", "prange", "prefetch"]

#: rows ahead of the one that is read: at about 50 ns of work a row, memory answers in time
AHEAD = 12
LINE = 64

# Numba takes the next number of this iterator for each function. 62 bits: a number is a part of a name, and not read.
FunctionIdentity._unique_ids = iter(lambda: secrets.randbits(62), None)


@intrinsic
def prefetch(_: Any, array: Any, byte: Any) -> Any:
    """Fetch the cache line of a C-ordered array at a byte offset (LLVM's `llvm.prefetch`: read, keep in all levels)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.gep(builder.bitcast(data, pointer), [args[1]]), word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen
