"""How each operator is run in tests, and the accuracy rule."""

import dataclasses
import math
import types

import numpy as np
import pytest
import torch

from kernels.triton_or_stub import triton


@dataclasses.dataclass
class Backend:
    """One way of running an operator's plain functions: the twin, Triton in the interpreter, or Triton on a GPU."""

    name: str
    device: str
    dtype: torch.dtype
    monkeypatch: pytest.MonkeyPatch

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


BACKENDS = [
    pytest.param(("twin", "cpu", torch.float64), id="twin-float64"),
    pytest.param(("twin", "cpu", torch.float32), id="twin-float32"),
    pytest.param(("twin", "cpu", torch.bfloat16), id="twin-bfloat16"),
    pytest.param(("interpreter", "cpu", torch.float32), id="interpreter-float32"),
    pytest.param(("interpreter", "cpu", torch.float16), id="interpreter-float16"),
    pytest.param(("cuda", "cuda", torch.float32), id="cuda-float32", marks=pytest.mark.gpu),
    pytest.param(("cuda", "cuda", torch.bfloat16), id="cuda-bfloat16", marks=pytest.mark.gpu),
]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Every backend and dtype; interpreter ones only where Triton runs in the interpreter (no GPU)."""
    name, device, dtype = request.param
    if name == "interpreter" and torch.cuda.is_available():
        pytest.skip("a GPU is here, so Triton compiles instead of interpreting")
    if name == "interpreter" and triton.__version__ == "none":
        pytest.skip("this machine has no Triton")
    if name == "interpreter" and triton.__version__.startswith("3.6") and np.__version__ >= "2.4":
        pytest.skip("Triton 3.6's interpreter does not run with numpy 2.4 or newer")
    return Backend(name, device, dtype, monkeypatch)


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
