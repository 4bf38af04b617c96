"""bfloat16 in Triton's interpreter, which keeps it as uint16 and computes with those integers.

Every operation widens to float32, computes there and rounds once to nearest even, as torch does on the CPU; reductions
and scans too (a GPU may round partial sums). What only moves data, and float8, is left as it is.
"""

import contextlib
from unittest import mock

import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

NAN = np.uint16(0x7FC0)
"""torch's bfloat16 NaN; other NaN bits would not survive the rounding below."""


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) to float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32, rounded to nearest even, to bfloat16 bits (uint16)."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), NAN, rounded.astype(np.uint16))


def _is_bfloat16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _wide(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widen(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _narrow(handle: TensorHandle) -> TensorHandle:
    """Back to bfloat16; the result of a comparison stays a truth value."""
    if handle.data.dtype == np.bool_:
        return TensorHandle(handle.data, tl.int1)
    return TensorHandle(narrow(handle.data), tl.bfloat16)


def _through_float32(operation):
    """`operation(*handles, ...)`, in float32 when the last handle, which gives the result's dtype, is bfloat16."""

    def computed(*arguments):
        handles = [argument for argument in arguments if isinstance(argument, TensorHandle)]
        if not _is_bfloat16(handles[-1]):
            return operation(*arguments)
        return _narrow(operation(*(_wide(a) if isinstance(a, TensorHandle) else a for a in arguments)))

    return computed


def _cast(original):
    def cast(source, destination):
        if destination.scalar == tl.bfloat16:
            with np.errstate(over="ignore"):  # beyond float32: infinity
                return TensorHandle(narrow(_wide(source).data.astype(np.float32)), tl.bfloat16)
        return original(_wide(source), destination)

    return cast


def _convert(original):
    """Casts with a rounding mode; float8 goes to the original."""

    def convert(source, destination, rounding):
        types = {source.dtype.scalar, destination.scalar}
        if tl.bfloat16 not in types or any(type.primitive_bitwidth == 8 for type in types):
            return original(source, destination, rounding)
        if destination.scalar == tl.bfloat16 and rounding == ir.ROUNDING_MODE.RTZ:
            bits = source.data.astype(np.float32).view(np.uint32)
            return TensorHandle((bits >> 16).astype(np.uint16), tl.bfloat16)
        return interpreter.interpreter_builder.cast_impl(source, destination)

    return convert


def _dot(original):
    def dot(a, b, accumulator, *options):
        return original(_wide(a), _wide(b), accumulator, *options)

    return dot


def _along_axis(original):
    """`apply_impl` of reductions and scans: a tuple of tensors in, a tensor or as many out (indices stay)."""

    def apply_impl(self, tensors):
        narrow_types = [tensor.dtype == tl.bfloat16 for tensor in tensors]
        if not any(narrow_types):
            return original(self, tensors)
        wide = tuple(
            self.to_tensor(widen(tensor.handle.data), tl.float32) if is_narrow else tensor
            for tensor, is_narrow in zip(tensors, narrow_types, strict=True)
        )
        results = original(self, wide)
        results = list(results) if isinstance(results, (list, tuple)) else [results]
        for position, (result, is_narrow) in enumerate(zip(results, narrow_types, strict=False)):
            if is_narrow and result.dtype == tl.float32:
                kind = tl.block_type(tl.bfloat16, result.shape) if result.type.is_block() else tl.bfloat16
                results[position] = tl.core.tensor(TensorHandle(narrow(result.handle.data), tl.bfloat16), kind)
        return results

    return apply_impl


def repair(stack: contextlib.ExitStack) -> None:
    """Replace what is wrong in the interpreter until `stack` is closed."""
    builder = interpreter.interpreter_builder
    replaced = {name: _through_float32(getattr(builder, name)) for name in ("binary_op", "unary_op", "create_fma")}
    replaced |= {name: _through_float32(getattr(builder, name)) for name in ("create_erf", "create_rsqrt")}
    replaced["create_clampf"] = _through_float32(builder.create_clampf)
    replaced["cast_impl"] = _cast(builder.cast_impl)
    replaced["create_fp_to_fp"] = _convert(builder.create_fp_to_fp)
    replaced["create_dot"] = _dot(builder.create_dot)
    replaced["get_bf16"] = lambda value: TensorHandle(narrow(np.array([value], dtype=np.float32)), tl.bfloat16)
    for name, value in replaced.items():
        stack.enter_context(mock.patch.object(builder, name, value, create=name == "get_bf16"))
    for operations in (interpreter.ReduceOps, interpreter.ScanOps):
        stack.enter_context(mock.patch.object(operations, "apply_impl", _along_axis(operations.apply_impl)))
