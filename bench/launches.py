"""What the launchers of `kernels/` really launch, for a GPU that need not be here.

The operators' plain functions run on CPU tensors of a Llama's sizes, with their Triton launchers in place of their
plain-torch twins and `triton.JITFunction.run` replaced: instead of starting a kernel it keeps what Triton's own binder
makes of the arguments (types, constants, alignment of pointers and strides, launch options), so each recorded launch is
specialised exactly as at run time. Torch's CPU tensors start at multiples of 64 bytes and its CUDA tensors at multiples
of 512, which Triton sees alike (it asks for 16).

To add an operator: to `OPERATORS` a function of (recorder, dtype, tokens) that calls the
plain functions, inside `with recorder.case(head_dim, window)` where there is one; or to `ATTENTION_OPERATORS`.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from triton import JITFunction, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

import kernels
from bench.bounds import MACHINES
from kernels import (
    adamw,
    attention,
    attention_backward,
    cross_entropy,
    cross_entropy_row,
    decode,
    paged_prefill,
    rmsnorm,
    rope,
    swiglu,
    tiles,
)
from kernels.documents import Documents

MODULES = tuple(
    module
    for module in (importlib.import_module(f"kernels.{info.name}") for info in pkgutil.iter_modules(kernels.__path__))
    if any(name.startswith("_triton_") for name in vars(module))
)
"""Those with launchers."""

HIDDEN, WIDTH, HEADS, KV_HEADS = 4096, 14336, 32, 8
"""Llama-3-8B: query heads in groups of 4 to a kv head."""

TOKENS = 4096
OTHER_TOKENS = (1, 3333)
"""Batch sizes that must not need other variants than `TOKENS`."""

ATTENTION_SHAPES = tuple((head_dim, window) for head_dim in (64, 96, 128, 256) for window in (None, 4096))
"""(head_dim, window). Which window is not part of what is compiled (4,096 is Mistral's)."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """One compiled variant: the compiler's input and what it was launched for."""

    table: str
    kernel: str
    """module.function"""
    head_dim: int | None
    window: bool
    function: JITFunction
    target: GPUTarget
    signature: dict[str, Any]
    constants: dict[tuple, Any]
    attributes: dict[tuple, Any]
    options: Any

    @property
    def stages(self) -> int:
        """Depth of the pipelined loop: the kernel's own STAGES where it has one, else the launch option."""
        return self.named_constants().get("STAGES", self.options.num_stages)

    def source(self) -> ASTSource:
        return ASTSource(self.function, self.signature, self.constants, self.attributes)

    def key(self) -> tuple[str, ...]:
        """Equal for launches that share one compiled kernel."""
        parts = (self.signature, self.constants, self.attributes, self.options)
        return (self.table, self.kernel, *(str(part) for part in parts))

    def digest(self) -> str:
        """A short name of this variant."""
        return hashlib.sha256(repr(self.key()).encode()).hexdigest()[:8]

    def named_constants(self) -> dict[str, int | float | str]:
        """What is fixed in this variant: tl.constexpr arguments, and integers that are 1."""
        named = {self.function.arg_names[path[0]]: value for path, value in self.constants.items()}
        return {name: value for name, value in named.items() if isinstance(value, int | float | str)}


class Recorder:
    """Collects the launches made while `recording`, each compiled variant once."""

    def __init__(self, table: str):
        self.table = table
        self.target = GPUTarget("cuda", MACHINES[table].capability, 32)
        self.backend = make_backend(self.target)
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
        bind = create_function_from_signature(function.signature, function.params, self.backend)
        bound, specialization, options = bind(*args, **keywords)
        options, *source = function._pack_args(self.backend, keywords, bound, specialization, options)
        name = f"{function.module.removeprefix('kernels.')}.{function.__name__}"
        launch = Launch(self.table, name, self._head_dim, self._window, function, self.target, *source, options)
        self.launches.setdefault(launch.key(), launch)


def record(
    table: str,
    attention_shapes: Sequence[tuple[int, int | None]] = ATTENTION_SHAPES,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tokens: int = TOKENS,
) -> list[Launch]:
    """Every variant that the operators launch with this tile table, attention for each (head_dim, window).

    float32 takes the table of that name wherever products are made, as at run time.
    """
    _use_triton(table)
    recorder = Recorder(table)
    with recorder.recording():
        for operator in OPERATORS:
            operator(recorder, dtype, tokens)
        for head_dim, window in attention_shapes:
            for operator in ATTENTION_OPERATORS:
                operator(recorder, dtype, tokens, head_dim, window)
    return list(recorder.launches.values())


def _use_triton(table: str) -> None:
    """Makes CPU tensors take the Triton launchers, with this tile table and its GPU's number of multiprocessors."""
    multiprocessors = MACHINES[table].multiprocessors
    for module in MODULES:
        for name in [name for name in vars(module) if name.startswith("_triton_")]:
            setattr(module, name.replace("_triton_", "_torch_"), getattr(module, name))
    for name, module in list(sys.modules.items()):
        if name.startswith("kernels.") and hasattr(module, "architecture"):
            module.architecture = lambda device: table
        if name.startswith("kernels.") and hasattr(module, "program_count"):
            module.program_count = lambda tensor, per_multiprocessor: per_multiprocessor * multiprocessors


def override_tile(table: str, kernel: str, size: int, fields: dict[str, int]) -> None:
    """Changes one entry of the tile table for this process."""
    sizes = tiles._tables()[table][kernel]
    like = min(sizes.items(), key=lambda item: (item[0] < size, abs(item[0] - size)))[1]
    sizes[size] = {**like, **fields}
    tiles.tile.cache_clear()
    tiles.work_blocks.cache_clear()


# ---- one function an operator ----------------------------------------------------------------------------------------


def adamw_launches(recorder: Recorder, dtype: torch.dtype, tokens: int) -> None:
    """One shard (its length is the model's, not the batch's), with weights of their own and as its own weights."""
    n = 1 << 17
    master, exp_avg, exp_avg_sq, gradient = (torch.empty(n) for _ in range(4))
    number, keep = torch.ones(1), torch.ones(1, dtype=torch.bool)
    for weights in (torch.empty(n, dtype=dtype), master):
        adamw.adamw_step(
            master, exp_avg, exp_avg_sq, gradient, weights, lr=number, gradient_scale=number,
            step=number, keep=keep, decay_ranges=[(0, 1000, 0.1)], beta1=0.9, beta2=0.95,
            eps=1e-8,
        )  # fmt: skip


def rmsnorm_launches(recorder: Recorder, dtype: torch.dtype, tokens: int) -> None:
    x, weight = torch.empty(tokens, HIDDEN, dtype=dtype), torch.empty(HIDDEN, dtype=dtype)
    rstd, weight_grad = torch.empty(tokens), torch.empty(HIDDEN)
    for other in (None, x):
        rmsnorm.rmsnorm_forward(x, weight, 1e-5, residual=other)
        rmsnorm.rmsnorm_backward(x, x, weight, rstd, weight_grad=weight_grad, dsummed=other)
    rmsnorm.rmsnorm_apply(x, weight, rstd)


def swiglu_launches(recorder: Recorder, dtype: torch.dtype, tokens: int) -> None:
    gate_up, dout = torch.empty(tokens, 2 * WIDTH, dtype=dtype), torch.empty(tokens, WIDTH, dtype=dtype)
    swiglu.swiglu_forward(gate_up)
    swiglu.swiglu_backward(dout, gate_up)
    swiglu.swiglu_backward(dout, gate_up, out=gate_up, product=torch.empty_like(dout))


def rope_launches(recorder: Recorder, dtype: torch.dtype, tokens: int) -> None:
    for head_dim in (64, 128):
        table = torch.empty(8192, head_dim // 2)
        packed = torch.empty(tokens, (HEADS + 2 * KV_HEADS) * head_dim, dtype=dtype)
        positions = torch.empty(tokens, dtype=torch.int32)
        with recorder.case(head_dim):
            rope.rope_forward(packed, table, table, positions, HEADS, KV_HEADS)
            rope.rope_backward(packed, table, table, positions, HEADS, KV_HEADS)


def cross_entropy_launches(recorder: Recorder, dtype: torch.dtype, tokens: int) -> None:
    tokens = min(tokens, 2048)  # a chunk of the linear layer before it
    targets, merged = torch.empty(tokens, dtype=torch.int64), torch.empty(tokens, 3)
    for vocabulary in (32000, 128256):
        logits = torch.empty(tokens, vocabulary, dtype=dtype)
        cross_entropy_row.losses_and_gradient(logits, targets, vocabulary)
        for ranks in (1, 8):
            part = torch.empty(tokens, vocabulary // ranks, dtype=dtype)
            for start in {0, vocabulary - vocabulary // ranks}:
                cross_entropy.stats(part, targets, start, vocabulary)
                cross_entropy.gradient(part, targets, merged, start, vocabulary)
        cross_entropy.gradient(
            logits, targets, merged, 0, vocabulary, scale=merged[:1, 0], out=torch.empty_like(logits)
        )


def decode_launches(recorder: Recorder, dtype: torch.dtype, sequences: int, head_dim: int, window: int | None) -> None:
    """4,096 keys in pages of 64. One sequence is split along its keys, thousands are not."""
    pages = torch.empty(64, 64, KV_HEADS, head_dim, dtype=dtype)
    for batch in (1, 1024 + sequences):
        q = torch.empty(batch, HEADS, head_dim, dtype=dtype)
        table, lengths = torch.empty(batch, 64, dtype=torch.int32), torch.empty(batch, dtype=torch.int32)
        with recorder.case(head_dim, window is not None):
            decode.decode_forward(q, pages, pages, table, lengths, window=None if window is None else 1024)


def prefill_launches(recorder: Recorder, dtype: torch.dtype, tokens: int, head_dim: int, window: int | None) -> None:
    """Two prompts behind prefixes that are in the cache."""
    pages = torch.empty(64, 64, KV_HEADS, head_dim, dtype=dtype)
    documents = Documents.build([0, tokens // 3, tokens], "cpu", window=window)
    q = torch.empty(tokens, HEADS + 2 * KV_HEADS, head_dim, dtype=dtype)[:, :HEADS]
    table, lengths = torch.empty(2, 64, dtype=torch.int32), torch.empty(2, dtype=torch.int32)
    with recorder.case(head_dim, window is not None):
        paged_prefill.paged_prefill_forward(q, pages, pages, table, lengths, documents, window=window)


def attention_launches(recorder: Recorder, dtype: torch.dtype, tokens: int, head_dim: int, window: int | None) -> None:
    documents = Documents.build([0, tokens // 3, tokens], "cpu", window=window)
    packed = torch.empty(tokens, (HEADS + 2 * KV_HEADS) * head_dim, dtype=dtype)
    q, k, v = packed.unflatten(1, (-1, head_dim)).split([HEADS, KV_HEADS, KV_HEADS], 1)
    dq, dk, dv = torch.empty_like(packed).unflatten(1, (-1, head_dim)).split([HEADS, KV_HEADS, KV_HEADS], 1)
    with recorder.case(head_dim, window is not None):
        out, lse = attention.attention_forward(q, k, v, documents, window=window)
        attention_backward.attention_backward(out, q, k, v, out, lse, documents, dq, dk, dv, window=window)


OPERATORS = (adamw_launches, cross_entropy_launches, rmsnorm_launches, rope_launches, swiglu_launches)
ATTENTION_OPERATORS = (attention_launches, decode_launches, prefill_launches)
"""These take a head_dim and a window too."""
