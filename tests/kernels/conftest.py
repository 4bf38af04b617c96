"""How each operator is run in tests, and the accuracy rule."""

import contextlib
import dataclasses
import math
import types
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from kernels.triton_or_stub import triton

REASON_NOT_TO_INTERPRET = (
    "a GPU is here, so Triton compiles instead of interpreting"
    if torch.cuda.is_available()
    else "this machine has no Triton"
    if triton.__version__ == "none"
    else "Triton 3.6's interpreter does not run with numpy 2.4 or newer"
    if triton.__version__.startswith("3.6") and np.__version__ >= "2.4"
    else None
)
if REASON_NOT_TO_INTERPRET is None:
    from tests.kernels.interpreter import Harness


@dataclasses.dataclass
class Backend:
    """One way of running an operator's plain functions: the twin, Triton in the interpreter, or Triton on a GPU."""

    name: str
    device: str
    dtype: torch.dtype
    monkeypatch: pytest.MonkeyPatch
    interpreter: "Harness | None"

    def use(self, *modules: types.ModuleType) -> None:
        """In the interpreter, CPU tensors go to the Triton launchers: they stand in for the twins `_torch_*`."""
        if self.name != "interpreter":
            return
        for module in modules:
            for name in [name for name in vars(module) if name.startswith("_triton_")]:
                self.monkeypatch.setattr(module, name.replace("_triton_", "_torch_"), getattr(module, name))

    def tensor(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """Normal random numbers that this dtype represents, the same on every backend."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype).to(self.device)

    @contextlib.contextmanager
    def order(self, seed: int, reverse: bool = False) -> Iterator[None]:
        """In the interpreter, programs of a launch run in the order that `seed` gives, or in the reverse of it."""
        if self.name != "interpreter":
            yield
            return
        before = self.interpreter.seed, self.interpreter.reverse
        self.interpreter.seed, self.interpreter.reverse = seed, reverse
        try:
            yield
        finally:
            self.interpreter.seed, self.interpreter.reverse = before

    def assert_same_in_any_order(self, run: Callable[[], object], seed: int = 1) -> None:
        """`run` returns tensors (None among them or not); they must be the same to the bit in two program orders, one
        the reverse of the other. On other backends: the same when run twice."""
        results = []
        for reverse in (False, True):
            with self.order(seed, reverse):
                result = run()
            results.append(result if isinstance(result, (tuple, list)) else (result,))
        for index, (first, second) in enumerate(zip(*results, strict=True)):
            if first is not None:
                same = torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))
                assert same, f"result {index} depends on the order of programs (seed {seed})"


BACKENDS = [
    pytest.param(("twin", "cpu", torch.float64), id="twin-float64"),
    pytest.param(("twin", "cpu", torch.float32), id="twin-float32"),
    pytest.param(("twin", "cpu", torch.bfloat16), id="twin-bfloat16"),
    pytest.param(("interpreter", "cpu", torch.float32), id="interpreter-float32"),
    pytest.param(("interpreter", "cpu", torch.float16), id="interpreter-float16"),
    pytest.param(("interpreter", "cpu", torch.bfloat16), id="interpreter-bfloat16"),
    pytest.param(("cuda", "cuda", torch.float32), id="cuda-float32", marks=pytest.mark.gpu),
    pytest.param(("cuda", "cuda", torch.bfloat16), id="cuda-bfloat16", marks=pytest.mark.gpu),
]


@pytest.fixture(autouse=True)
def strict_interpreter(request):
    """Every launch in Triton's interpreter is a strict one (see `interpreter.py`); None where nothing is interpreted.

    The order of programs differs from test to test but not from run to run.
    """
    if REASON_NOT_TO_INTERPRET is not None:
        yield None
        return
    with Harness(seed=zlib.crc32(request.node.nodeid.encode())) as harness:
        yield harness


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch, strict_interpreter):
    """Every backend and dtype; interpreter ones only where Triton runs in the interpreter (no GPU)."""
    name, device, dtype = request.param
    if name == "interpreter" and REASON_NOT_TO_INTERPRET is not None:
        pytest.skip(REASON_NOT_TO_INTERPRET)
    return Backend(name, device, dtype, monkeypatch, strict_interpreter)


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan():
    """torch.empty gives NaN, so that an element that nobody writes is seen."""
    if torch.cuda.is_available():
        yield
        return
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def assert_accurate():
    """Error against float64 at most `factor` times that of plain torch in the same dtype, plus one unit in the last
    place of the tensor's largest magnitude; in float64 equality within 1e-12 of that magnitude."""

    def check(ours: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, factor: float) -> None:
        assert ours.dtype == plain.dtype
        assert ours.shape == plain.shape == exact.shape
        if not exact.numel():
            return
        exact = exact.to(torch.float64)
        largest = exact.abs().max().item()
        error = (ours.to(torch.float64) - exact).abs()
        assert not error.isnan().any()
        if ours.dtype == torch.float64:
            assert error.max().item() <= 1e-12 * largest
            return
        unit = torch.finfo(ours.dtype).eps * 2.0 ** math.floor(math.log2(largest)) if largest else 0.0
        allowed = factor * (plain.to(torch.float64) - exact).abs().max().item() + unit
        assert error.max().item() <= allowed, f"error {error.max().item():.3e}, allowed {allowed:.3e}"

    return check
