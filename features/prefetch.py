"""A hint to the processor, for kernels that read rows which lie far apart in memory."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

#: rows ahead of the one that is read: at about 50 ns of work a row, memory answers in time
AHEAD = 12
LINE = 64


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
