"""`triton` and `tl`, or stand-ins with which the kernel files can be imported where Triton has no build (macOS).

There every tensor is a CPU tensor and takes the plain-torch twin; starting a kernel raises ImportError.
"""

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    if error.name != "triton":  # a Triton that is there but broken has to be seen
        raise
    from types import SimpleNamespace

    class _Kernel:
        """What `@triton.jit` makes of a function: something that cannot be started."""

        def __getitem__(self, grid):
            raise ImportError("this machine has no Triton, so no GPU kernels; CPU tensors need none")

    def _jit(function=None, **options):
        return (lambda _: _Kernel()) if function is None else _Kernel()

    def _next_power_of_2(n: int) -> int:
        return 1 << (n - 1).bit_length()

    triton = SimpleNamespace(
        jit=_jit, next_power_of_2=_next_power_of_2, cdiv=lambda a, b: -(-a // b), __version__="none"
    )
    # Names that stand in annotations and at the top level of the kernel files.
    tl = SimpleNamespace(constexpr=object, dtype=object, float32=None, float64=None)

__all__ = ["tl", "triton"]
