"""Triton's interpreter made strict: what passes in it by luck, and fails or differs on a GPU, fails here.

As shipped it runs the programs of a launch one after another, always in the same order, gives 0 to lanes masked off
without `other`, reads and writes any address, and computes wrongly in bfloat16. `Harness` replaces the few methods all
of this goes through (the same in Triton 3.6 and 3.7), so that

- programs run in a shuffled order, given by a seed;
- lanes masked off without `other` get NaN, or an integer that leads far outside when it is used as an index;
- a launch fails with a `Defect` when an active lane is outside its argument, when a program stores what another one
  stores, loads or updates atomically, or loads what another one stores; when one store gives one address two values;
- bfloat16 is right (see `interpreter_bfloat16`).

Every pointer carries the number of its argument in its highest 16 bits, which addresses do not use, so that an access
is held against the tensor that was passed, with its strides: not against whatever lies at the address, and not against
the storage of which the tensor is a view.
"""

import contextlib
import dataclasses
import inspect
import math
import mmap
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from tests.kernels import interpreter_bfloat16

TAG_SHIFT = np.uint64(48)
ADDRESS = np.uint64((1 << 48) - 1)
MANY = -1
"""In the maps of who touched what: more than one program."""
POISON = 11_259_375
"""Integers of masked-off lanes: as an index it leads out of the tensors of tests, and times a stride not out of int32,
which would stop a kernel whose lanes stay masked off."""
LOAD, STORE, ATOMIC = "load", "store", "update"
CONFLICTS = {LOAD: (STORE, ATOMIC), STORE: (STORE, LOAD, ATOMIC), ATOMIC: (STORE, LOAD)}
"""What another program of the same launch must not have done where this one loads, stores or updates atomically."""
PAST = {LOAD: "loaded", STORE: "stored", ATOMIC: "updated"}
NORESERVE = 0x4000  # Linux; Python 3.11 has no name for it


class Defect(AssertionError):
    """What a kernel did in the interpreter that would be wrong, or undefined, on a GPU."""


def extent(tensor: torch.Tensor) -> int:
    """Bytes from the beginning of its first element to the end of its last."""
    if not tensor.numel():
        return 0
    last = sum(stride * (size - 1) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


class Region:
    """The bytes that the arguments sharing one storage span, and which program touched each of their elements."""

    def __init__(self) -> None:
        self.begin, self.end, self.unit = 1 << 63, 0, 8
        self.maps: dict[str, np.ndarray] = {}

    def include(self, begin: int, end: int, itemsize: int) -> None:
        self.begin, self.end, self.unit = min(self.begin, begin), max(self.end, end), min(self.unit, itemsize)

    def touched_by(self, kind: str) -> np.ndarray:
        """Program (from 1 on), 0 for none or MANY, for each unit of bytes; memory that is not used is not allocated."""
        if kind not in self.maps:
            size = max(1, -(-(self.end - self.begin) // self.unit)) * 4
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
            self.maps[kind] = np.frombuffer(memory, dtype=np.int32)
        return self.maps[kind]

    def units(self, addresses: np.ndarray, size: int) -> np.ndarray:
        first = ((addresses - np.uint64(self.begin)) // np.uint64(self.unit)).astype(np.int64)
        return first if size <= self.unit else first[:, None] + np.arange(size // self.unit)


@dataclasses.dataclass
class Argument:
    """A tensor passed to a launch, itself or inside a descriptor or tuple."""

    name: str
    tensor: torch.Tensor
    region: Region

    def __post_init__(self) -> None:
        itemsize = self.tensor.element_size()
        dimensions = sorted(
            (
                (stride * itemsize, size)
                for size, stride in zip(self.tensor.shape, self.tensor.stride(), strict=True)
                if size > 1 and stride
            ),
            reverse=True,
        )
        dimensions.append((1, itemsize))
        self.extent = extent(self.tensor)
        self.region.include(self.tensor.data_ptr(), self.tensor.data_ptr() + self.extent, itemsize)
        self.dimensions = [dimensions[-1]]
        for stride, size in reversed(dimensions[:-1]):
            inner_stride, inner_size = self.dimensions[0]
            if stride == inner_stride * inner_size:
                self.dimensions[0] = (inner_stride, inner_size * size)
            else:
                self.dimensions.insert(0, (stride, size))
        spans = [stride * (size - 1) for stride, size in self.dimensions]
        if any(sum(spans[i + 1 :]) >= self.dimensions[i][0] for i in range(len(spans) - 1)):
            self.dimensions = [(1, self.extent)]  # elements overlap or interleave: only the span is checked

    def holds(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """For each address, whether `size` bytes from there on belong to the tensor."""
        rest = addresses.astype(np.int64) - self.tensor.data_ptr()
        inside = (rest >= 0) & (rest < self.extent)
        for stride, count in self.dimensions[:-1]:
            index = rest // stride
            inside &= index < count
            rest = rest - index * stride
        return inside & (rest <= self.dimensions[-1][1] - size)

    def describe(self, address: int) -> str:
        offset = (int(address) - self.tensor.data_ptr()) / self.tensor.element_size()
        shape, strides = list(self.tensor.shape), list(self.tensor.stride())
        return f"argument '{self.name}' ({shape}, strides {strides}, {self.tensor.dtype}) at element {offset:.12g}"


@dataclasses.dataclass
class Access:
    """Active lanes of one load, store or atomic update of one argument."""

    kind: str
    argument: Argument
    addresses: np.ndarray  # [active lanes], bytes
    size: int  # bytes a lane
    masked_off: int  # lanes of the same operation that are not active


@dataclasses.dataclass
class Launch:
    """One launch of a kernel while it runs."""

    kernel: str
    grid: tuple[int, int, int]
    order: str
    arguments: list[Argument] = dataclasses.field(default_factory=list)
    regions: dict[int, Region] = dataclasses.field(default_factory=dict)
    program: int = 0
    current_name: str = ""
    defect: Defect | None = None

    def add(self, tensor: torch.Tensor) -> int:
        """The number of a new argument, from 1 on."""
        region = self.regions.setdefault(tensor.untyped_storage().data_ptr(), Region())
        self.arguments.append(Argument(self.current_name, tensor, region))
        return len(self.arguments)

    def coordinates(self, program: int) -> tuple[int, int, int]:
        return tuple(int(i) for i in np.unravel_index(program, self.grid))

    def fail(self, text: str) -> None:
        """Raise; kept as well, because the interpreter wraps what kernels raise into its own errors."""
        self.defect = Defect(f"{self.kernel}: program {self.coordinates(self.program)} {text} [{self.order}]")
        raise self.defect

    def check(self, access: Access) -> None:
        argument, addresses, kind = access.argument, access.addresses, access.kind
        inside = argument.holds(addresses, access.size)
        if not inside.all():
            where = argument.describe(addresses[np.argmin(inside)])
            self.fail(f"{kind}s outside {where}, {np.count_nonzero(~inside)} lanes in all")
        if (addresses & np.uint64(access.size - 1)).any():
            self.fail(
                f"{kind}s at an address that is no multiple of {access.size} bytes: {argument.describe(addresses[0])}"
            )
        units = argument.region.units(addresses, access.size)
        own = self.program + 1
        for other_kind in CONFLICTS[kind]:
            if other_kind not in argument.region.maps:
                continue
            others = argument.region.maps[other_kind][units]
            conflict = (others != 0) & (others != own)
            if conflict.any():
                lane = np.unravel_index(np.argmax(conflict), conflict.shape)
                other = int(others[lane])
                who = "other programs" if other == MANY else f"program {self.coordinates(other - 1)}"
                self.fail(f"{kind}s {argument.describe(addresses[lane[0]])}, which {who} {PAST[other_kind]}")
        touched = argument.region.touched_by(kind)
        before = touched[units]
        touched[units] = np.where((before == 0) | (before == own), own, MANY)


class Harness:
    """The strict interpreter, between `with Harness(seed):` and the end of the block."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.reverse = False
        self.observers: list[Callable[[Launch, Access], None]] = []
        self._launch: Launch | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Harness":
        interpreter_bfloat16.repair(self._stack)
        builder = interpreter.interpreter_builder
        self._convert = interpreter._implicit_cvt
        self._atomic_rmw, self._atomic_cas = builder.create_atomic_rmw, builder.create_atomic_cas
        replaced = [
            (builder, "create_masked_load", self._load),
            (builder, "create_masked_store", self._store),
            (builder, "create_atomic_rmw", self._rmw),
            (builder, "create_atomic_cas", self._cas),
            (interpreter, "_implicit_cvt", self._tagged),
            (TritonSemantic, "binary_op_sanitize_overflow_impl", _check_overflow),
            (interpreter.GridExecutor, "__call__", lambda executor, *args, **kwargs: self._run(executor, args, kwargs)),
        ]
        for owner, name, value in replaced:
            self._stack.enter_context(mock.patch.object(owner, name, value))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """The interpreter as shipped, until the end of the block."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    # ---- a launch ----------------------------------------------------------------------------------------------------

    def _run(self, executor: interpreter.GridExecutor, args: tuple, kwargs: dict) -> None:
        """As the interpreter's own loop over the grid, but in another order and on the given tensors themselves."""
        function = executor.fn
        kwargs = {name: value for name, value in kwargs.items() if name in executor.arg_names}
        given = inspect.getcallargs(function, *args, **kwargs)
        grid = executor.grid(given) if callable(executor.grid) else executor.grid
        grid = (*grid, *[1] * (3 - len(grid)))
        order = f"program order: seed {self.seed}{', reversed' if self.reverse else ''}"
        self._launch = launch = Launch(function.__name__, grid, order)
        programs = np.random.default_rng(self.seed).permutation(math.prod(grid))
        patches = interpreter._patch_lang(types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        builder = interpreter.interpreter_builder
        builder.set_grid_dim(*grid)
        try:
            with _patched_once(), np.errstate(all="ignore"):  # infinity and NaN are values on a GPU
                converted = {}
                for name, value in given.items():
                    launch.current_name = name
                    converted[name] = value if name in executor.constexprs else interpreter._implicit_cvt(value)
                for program in programs[::-1] if self.reverse else programs:
                    launch.program = int(program)
                    builder.set_grid_idx(*launch.coordinates(launch.program))
                    function(**converted)
        except Exception as error:
            if launch.defect is not None:
                raise launch.defect from None
            cause = error
            while isinstance(cause, interpreter.InterpreterError) and cause.__cause__:
                cause = cause.__cause__
            raise interpreter.InterpreterError(f"{launch.kernel}: {cause!r} [{order}]") from cause
        finally:
            patches.restore()
            self._launch = None

    def _tagged(self, value: Any) -> Any:
        """A kernel's argument as the interpreter wants it; pointers carry the argument's number.

        A Python float becomes float32, as on a GPU; the interpreter would leave it a float64.
        """
        if isinstance(value, float):
            return tl.tensor(TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)
        converted = self._convert(value)
        if hasattr(value, "data_ptr"):
            tensor = interpreter._unwrap_tensor(value)
            assert tensor.device.type == "cpu", f"{self._launch.current_name} is on {tensor.device}"
            converted.handle.data |= np.uint64(self._launch.add(tensor)) << TAG_SHIFT
        return converted

    # ---- memory operations -------------------------------------------------------------------------------------------

    def _access(self, kind: str, pointers: TensorHandle, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        """Check an access; the true addresses and the mask, as arrays of one shape."""
        launch = self._launch
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        mask = np.broadcast_to(np.asarray(mask.data, dtype=bool), pointers.data.shape)
        active = pointers.data[mask]
        tags = (active if active.size else pointers.data.reshape(-1)[:1]) >> TAG_SHIFT
        for tag in tags[:1] if (tags == tags[0]).all() else np.unique(tags):
            chosen = active[tags[: active.size] == tag]
            if 0 < tag <= len(launch.arguments):
                masked_off = mask.size - active.size
                access = Access(kind, launch.arguments[int(tag) - 1], chosen & ADDRESS, size, masked_off)
                launch.check(access)
                for observer in self.observers:
                    observer(launch, access)
            elif chosen.size:
                launch.fail(f"{kind}s at an address that comes from no argument")
        return pointers.data & ADDRESS, mask

    def _load(self, pointers, mask, other, cache_modifier, eviction_policy, is_volatile):
        kind = pointers.get_element_ty()
        numpy_type = interpreter._get_np_dtype(kind)
        addresses, mask = self._access(LOAD, pointers, mask)
        if other is None:
            other = TensorHandle(np.full(addresses.shape, _poison(kind), dtype=numpy_type), kind)
        return TensorHandle(interpreter._interpreter.load(addresses, mask, other.data, numpy_type), kind)

    def _store(self, pointers, value, mask, cache_modifier, eviction_policy):
        addresses, mask = self._access(STORE, pointers, mask)
        values = np.ascontiguousarray(np.broadcast_to(value.data, addresses.shape))
        interpreter._interpreter.store(addresses, values, mask)
        stored = interpreter._interpreter.load(addresses, mask, values, values.dtype)
        bits = f"u{values.itemsize}"
        if not np.array_equal(stored.view(bits), values.view(bits)):
            self._launch.fail("gives one address two values in one store")

    def _rmw(self, operation, pointers, value, mask, sem, scope):
        addresses, _ = self._access(ATOMIC, pointers, mask)
        return self._atomic_rmw(operation, TensorHandle(addresses, pointers.dtype), value, mask, sem, scope)

    def _cas(self, pointers, expected, value, sem, scope):
        everywhere = TensorHandle(np.ones(pointers.data.shape, dtype=bool), tl.int1)
        addresses, _ = self._access(ATOMIC, pointers, everywhere)
        return self._atomic_cas(TensorHandle(addresses, pointers.dtype), expected, value, sem, scope)


def _poison(kind: tl.dtype) -> Any:
    """What a lane masked off without `other` gets."""
    if kind == tl.bfloat16:
        return interpreter_bfloat16.NAN
    if kind.is_floating():
        return 0xFF if kind.primitive_bitwidth == 8 else math.nan
    return True if kind == tl.int1 else POISON & ((1 << (kind.primitive_bitwidth - 1)) - 1)


def _check_overflow(semantic: TritonSemantic, left: tl.tensor, right: tl.tensor, operation: Callable) -> None:
    """As Triton's own check, which is built of so many of its operations that attention spends a third of its time there."""
    kind = left.type.scalar
    if kind.int_bitwidth >= 64:
        return
    exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation.__name__](
        left.handle.data.astype(np.int64), right.handle.data.astype(np.int64)
    )
    inside = (exact >= kind.get_int_min_value()) & (exact <= kind.get_int_max_value())
    assert inside.all(), f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}"


@contextlib.contextmanager
def _patched_once() -> Iterator[None]:
    """A launch patches the language once; doing it in every function that a kernel calls, as the interpreter does, costs
    a millisecond a call, tl.sum's included."""
    with mock.patch.object(interpreter, "_patch_lang", return_value=interpreter._LangPatchScope()):
        yield
