"""What the launchers of `kernels/` really launch, for a GPU that need not be here.

The launchers `_triton_*` run on CPU tensors of a Llama's sizes while `triton.JITFunction.run` is replaced: instead of
starting a kernel it keeps what Triton's own binder makes of the arguments (types, constants, alignment of pointers and
strides, launch options), so each recorded launch is specialised exactly as at run time. Torch's CPU tensors start at
multiples of 64 bytes and its CUDA tensors at multiples of 512, which Triton sees alike (it asks for 16).

To add an operator: a function of `(dtype, tokens)` that calls its launchers inside `with recorder.case(...)`, in
`OPERATORS`.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import torch
from triton import JITFunction, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

import kernels
from kernels import attention, attention_backward, rmsnorm, rope, swiglu, tiles
from kernels.documents import Documents

CAPABILITIES = {"sm_80": 80, "sm_90": 90, "safe": 89}
"""Tile table -> the compute capability it is compiled for; the safe table stands for sm_86, sm_89 and sm_120."""

HIDDEN, WIDTH, HEADS, KV_HEADS = 4096, 14336, 32, 8
"""Llama-3-8B: query heads in groups of 4 to a kv head."""

HEAD_DIMS = (64, 96, 128, 256)
WINDOW = 4096
"""Keys a query sees in the windowed launches (Mistral); its value is not part of what is compiled."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """One compiled variant: the compiler's input and what it was launched for."""

    kernel: str
    """module.function"""
    head_dim: int | None
    window: bool
    function: JITFunction
    signature: dict[str, Any]
    constants: dict[tuple, Any]
    attributes: dict[tuple, Any]
    options: Any

    def source(self) -> ASTSource:
        return ASTSource(self.function, self.signature, self.constants, self.attributes)

    def digest(self) -> str:
        """A short name of this variant."""
        return hashlib.sha256(repr(self.key()).encode()).hexdigest()[:8]

    def key(self) -> tuple[str, ...]:
        """Equal for launches that share one compiled kernel."""
        parts = (self.signature, self.constants, self.attributes, self.options)
        return (self.kernel, *(str(part) for part in parts))


class Recorder:
    """Collects the launches made while `recording`, each compiled variant once."""

    def __init__(self, target: GPUTarget):
        self.backend = make_backend(target)
        self.launches: dict[tuple[str, ...], Launch] = {}
        self._head_dim, self._window = None, False

    @contextlib.contextmanager
    def case(self, head_dim: int | None = None, window: bool = False) -> Iterator[None]:
        """Names what the launches inside are for."""
        self._head_dim, self._window = head_dim, window
        yield
        self._head_dim, self._window = None, False

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        run = JITFunction.run
        JITFunction.run = lambda function, *args, grid, warmup, **keywords: self._add(function, args, keywords)
        try:
            yield
        finally:
            JITFunction.run = run

    def _add(self, function: JITFunction, args: tuple, keywords: dict) -> None:
        # what JITFunction.run itself adds
        keywords["debug"] = function.debug or knobs.runtime.debug
        keywords["instrumentation_mode"] = knobs.compilation.instrumentation_mode
        bound, specialization, options = self._binder(function)(*args, **keywords)
        packed = function._pack_args(self.backend, keywords, bound, specialization, options)
        options, signature, constants, attributes = packed
        name = f"{function.module.removeprefix('kernels.')}.{function.__name__}"
        launch = Launch(name, self._head_dim, self._window, function, signature, constants, attributes, options)
        self.launches.setdefault(launch.key(), launch)

    def _binder(self, function: JITFunction):
        from triton.runtime.jit import create_function_from_signature

        return create_function_from_signature(function.signature, function.params, self.backend)


def record(
    table: str, *, dtype: torch.dtype = torch.bfloat16, tokens: int = 192, head_dims: tuple[int, ...] = HEAD_DIMS
) -> list[Launch]:
    """Every variant that the operators launch with this tile table. `tokens` changes nothing: see the test."""
    for module in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"kernels.{module.name}")
        if hasattr(module, "architecture"):
            module.architecture = lambda device: table
    recorder = Recorder(GPUTarget("cuda", CAPABILITIES[table], 32))
    with recorder.recording():
        for operator in OPERATORS:
            operator(recorder, dtype, tokens)
        for head_dim in head_dims:
            for window in (None, WINDOW):
                attention_launches(recorder, dtype, tokens, head_dim, window)
    return list(recorder.launches.values())


def override_tile(table: str, kernel: str, size: int, fields: dict[str, int]) -> None:
    """Changes one entry of the tile table for this process."""
    sizes = tiles._tables()[table][kernel]
    like = min(sizes.items(), key=lambda item: (item[0] < size, abs(item[0] - size)))[1]
    sizes[size] = {**like, **fields}
    tiles.tile.cache_clear()
    tiles.work_blocks.cache_clear()


# ---- one function an operator ----------------------------------------------------------------------------------------


def rmsnorm_launches(recorder: Recorder, dtype: torch.dtype, tokens: int) -> None:
    x, weight = torch.empty(tokens, HIDDEN, dtype=dtype), torch.empty(HIDDEN, dtype=dtype)
    rstd, weight_grad = torch.empty(tokens), torch.empty(HIDDEN)
    for other in (None, x):
        rmsnorm._triton_forward(x, weight, 1e-5, other, x)
        rmsnorm._triton_backward(x, x, weight, rstd, weight_grad, other, x)
    rmsnorm._triton_apply(x, weight, rstd)


def swiglu_launches(recorder: Recorder, dtype: torch.dtype, tokens: int) -> None:
    gate_up, half = torch.empty(tokens, 2 * WIDTH, dtype=dtype), torch.empty(tokens, WIDTH, dtype=dtype)
    swiglu._triton_forward(gate_up, half)
    swiglu._triton_backward(half, gate_up, gate_up, half)


def rope_launches(recorder: Recorder, dtype: torch.dtype, tokens: int) -> None:
    for head_dim in (64, 128):
        table = torch.empty(8192, head_dim // 2)
        packed = torch.empty(tokens, (HEADS + 2 * KV_HEADS) * head_dim, dtype=dtype)
        positions = torch.empty(tokens, dtype=torch.int32)
        with recorder.case(head_dim):
            for inverse in (False, True):
                rope._triton_rotate(packed, table, table, positions, HEADS, KV_HEADS, inverse)


def attention_launches(recorder: Recorder, dtype: torch.dtype, tokens: int, head_dim: int, window: int | None) -> None:
    documents = Documents.build([0, tokens // 3, tokens], "cpu", window=window)
    packed = torch.empty(tokens, (HEADS + 2 * KV_HEADS) * head_dim, dtype=dtype)
    q, k, v = packed.unflatten(1, (-1, head_dim)).split([HEADS, KV_HEADS, KV_HEADS], 1)
    out, lse = torch.empty_like(q), torch.empty(HEADS, tokens)
    dq, dk, dv = torch.empty_like(packed).unflatten(1, (-1, head_dim)).split([HEADS, KV_HEADS, KV_HEADS], 1)
    with recorder.case(head_dim, window is not None):
        attention._triton_forward(q, k, v, documents, documents, window, 0.1, out, lse)
        attention_backward._triton_backward(out, q, k, v, out, lse, documents, dq, dk, dv, window, 0.1)


OPERATORS = (rmsnorm_launches, swiglu_launches, rope_launches)
"""All but attention, which `record` runs for each head_dim."""
