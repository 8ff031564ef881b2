"""Dot products of a few rows of weights with a few items, in the vector instructions of this processor.

LLVM vectorises a loop with one sum well, but not one with a sum for each of several rows and items. So the loop is
written here in LLVM's own language, for the widest registers and the best products of int16 that numba compiles for:

    weights x values       AVX-512                          AVX2               others
    int8    x int16        vpmaddwd or vpdpwssd, 32         vpmaddwd, 16       products of 32 bits, 8
    bf16    x float32      vfmadd, 16                       vfmadd, 8          what LLVM makes of it, 8
    float32 x float32      the same                         the same           the same

Several items share the reading and widening of weights, and several rows the reading of values. A dot product is added
up in the same order whatever the numbers of rows and items.

This module imports numba, which is slow: import it only where it is used.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

BYTE, SHORT, WORD, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
#: Bytes ahead of what is read that are asked for: the processor's own prefetching stops at the end of a page.
AHEAD = 4096


def dots(rows: int, items: int) -> Any:
    """Return a function for compiled code: (weights (O, I), o, values (B, I or more), b) -> a tuple of dot products.

    They are those of row o with each of the items from b on, then of row o + 1, and so on. Weights are int8 with values
    int16 and sums int32, or uint16 (bf16) or float32 with float32. Both are contiguous along their last axis.
    """

    @intrinsic
    def multiply(typingctx, weights, o, values, b):
        def generate(context, builder, signature, arguments):
            return _generate(context, builder, signature, arguments, rows, items)

        result = types.int32 if weights.dtype == types.int8 else types.float32
        return types.UniTuple(result, rows * items)(weights, types.intp, values, types.intp), generate

    return multiply


def registers() -> int:
    """Return the number of vector registers that numba compiles for."""
    return 32 if "avx512f" in _features(cpu_target.target_context) else 16


def _generate(context: Any, builder: Any, signature: Any, arguments: Any, rows: int, items: int) -> Any:
    """Emit a loop over the elements that fill registers, and one over the few that are left."""
    kinds = signature.args
    weights, values = (context.make_array(kinds[i])(context, builder, arguments[i]) for i in (0, 2))
    row_starts = [_row(builder, weights, arguments[1], r) for r in range(rows)]
    item_starts = [_row(builder, values, arguments[3], b) for b in range(items)]
    wide = _Multiplier(builder.module, _features(context), kinds[0].dtype)
    single = _Multiplier(builder.module, None, kinds[0].dtype)
    count = builder.extract_value(weights.shape, 1)
    whole = builder.sub(count, builder.urem(count, ir.Constant(count.type, wide.lanes)))
    starts = row_starts, item_starts
    totals = [
        wide.total(builder, many, single.total(builder, few))
        for many, few in zip(
            _loop(builder, wide, ir.Constant(count.type, 0), whole, *starts),
            _loop(builder, single, whole, count, *starts),
            strict=True,
        )
    ]
    return context.make_tuple(builder, signature.return_type, totals)


def _loop(builder: Any, multiplier: "_Multiplier", start: Any, stop: Any, rows: list[Any], items: list[Any]) -> list:
    """Emit a loop with all sums in registers, and return them: of the first row with each item, then of the next."""
    accumulators = []
    for _ in range(len(rows) * len(items)):
        accumulators.append(cgutils.alloca_once(builder, multiplier.sum))
        builder.store(ir.Constant(multiplier.sum, None), accumulators[-1])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=_PREFETCH)
    step = ir.Constant(start.type, multiplier.lanes)
    with cgutils.for_range_slice(builder, start, stop, step, intp=start.type) as (i, _):
        loaded = [multiplier.values(builder, builder.gep(base, [i])) for base in items]
        for r, base in enumerate(rows):
            place = builder.gep(base, [i])
            if multiplier.lanes > 1:
                ahead = builder.gep(builder.bitcast(place, BYTE.as_pointer()), [ir.Constant(i.type, AHEAD)])
                builder.call(prefetch, [ahead, *(ir.Constant(WORD, flag) for flag in (0, 3, 1))])
            row = multiplier.weights(builder, place)
            for b, x in enumerate(loaded):
                kept = accumulators[r * len(items) + b]
                builder.store(multiplier.add(builder, builder.load(kept), row, x), kept)
    return [builder.load(kept) for kept in accumulators]


_PREFETCH = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), WORD, WORD, WORD])


def _row(builder: Any, array: Any, first: Any, offset: int) -> Any:
    """Return a pointer to a row of a matrix whose last axis is contiguous."""
    index = builder.add(first, ir.Constant(first.type, offset))
    start = builder.bitcast(array.data, BYTE.as_pointer())
    place = builder.gep(start, [builder.mul(builder.extract_value(array.strides, 0), index)])
    return builder.bitcast(place, array.data.type)


def _features(context: Any) -> set[str]:
    """Return the features that numba compiles for, as LLVM calls them."""
    _, _, features = context.codegen().magic_tuple()
    return {word[1:] for word in features.split(",") if word.startswith("+")}


class _Multiplier:
    """How to load, multiply, add and sum up vectors of one type of weights; without features, single elements."""

    def __init__(self, module: ir.Module, features: set[str] | None, kind: Any):
        wide = features is not None and {"avx512f", "avx512bw"} <= features
        self.module, self.integers, self.bf16 = module, kind == types.int8, kind == types.uint16
        self.lanes = 1 if features is None else 16 if wide else 8
        self.sum: Any = ir.VectorType(WORD if self.integers else FLOAT, self.lanes)
        self.pairs: str | None = None  # the instruction that adds products of pairs of int16 to int32
        if self.integers and features is not None and (wide or "avx2" in features):
            self.pairs = "avx512.pmaddw.d.512" if wide else "avx2.pmadd.wd"
            self.lanes *= 2

    def weights(self, builder: Any, place: Any) -> Any:
        if self.integers:
            return self._extended(builder, self._load(builder, place, BYTE))
        if self.bf16:
            words = builder.zext(self._load(builder, place, SHORT), ir.VectorType(WORD, self.lanes))
            return builder.bitcast(builder.shl(words, ir.Constant(words.type, [16] * self.lanes)), self.sum)
        return self._load(builder, place, FLOAT)

    def values(self, builder: Any, place: Any) -> Any:
        if self.integers:
            return self._extended(builder, self._load(builder, place, SHORT))
        return self._load(builder, place, FLOAT)

    def add(self, builder: Any, total: Any, row: Any, x: Any) -> Any:
        """Add the products of two vectors to a vector of sums."""
        if not self.integers:
            return builder.call(
                self._named(f"llvm.fmuladd.v{self.lanes}f32", self.sum, [self.sum] * 3), [row, x, total]
            )
        if not self.pairs:
            return builder.add(total, builder.mul(row, x))
        # Where there is VNNI, and it is faster, LLVM makes one instruction of the product and the sum.
        products = builder.call(self._named(f"llvm.x86.{self.pairs}", self.sum, [row.type, x.type]), [row, x])
        return builder.add(total, products)

    def total(self, builder: Any, sums: Any, other: Any = None) -> Any:
        """Add up a vector of sums, and another number."""
        if self.lanes == 1:
            return builder.extract_element(sums, ir.Constant(WORD, 0))
        if self.integers:
            reduce = self._named(f"llvm.vector.reduce.add.v{self.sum.count}i32", WORD, [self.sum])
            return builder.add(builder.call(reduce, [sums]), other)
        reduce = self._named(f"llvm.vector.reduce.fadd.v{self.sum.count}f32", FLOAT, [FLOAT, self.sum])
        return builder.call(reduce, [other, sums], fastmath=("reassoc",))

    def _extended(self, builder: Any, x: Any) -> Any:
        kind = ir.VectorType(SHORT if self.pairs else WORD, self.lanes)
        return x if x.type == kind else builder.sext(x, kind)

    def _load(self, builder: Any, place: Any, kind: Any) -> Any:
        vector = ir.VectorType(kind, self.lanes)
        return builder.load(builder.bitcast(place, vector.as_pointer()), align=1)

    def _named(self, name: str, result: Any, arguments: list[Any]) -> Any:
        return cgutils.get_or_insert_function(self.module, ir.FunctionType(result, arguments), name)
