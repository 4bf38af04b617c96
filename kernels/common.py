"""What every operator shares: argument checks of the public operators, the accumulation dtype, launch helpers."""

import functools

import torch

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of softmax and norm statistics, losses and main gradients: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def add_product(total: torch.Tensor, dy: torch.Tensor, x: torch.Tensor) -> None:
    """total += dy^T @ x with sums in total's dtype: a weight gradient. dy [tokens, out], x [tokens, in].

    On CUDA the product reads 16-bit operands and adds into float32 in place; CPU products have no mixed output, so
    there the operands are widened first.
    """
    if total.dtype == dy.dtype:
        total.addmm_(dy.t(), x)
    elif total.is_cuda:
        torch.addmm(total, dy.t(), x, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(dy.t().to(total.dtype), x.to(total.dtype))


def check_floating(name: str, tensor: torch.Tensor, dimensions: int) -> None:
    """Raise ValueError unless `tensor` is floating, has this many dimensions and no gaps in its last one.

    Messages are built only when raised: formatting a shape under torch.compile would make it a constant of the graph.
    """
    if tensor.dtype not in FLOATING:
        raise ValueError(f"{name} has dtype {tensor.dtype}; supported are float16, bfloat16, float32 and float64")
    if tensor.dim() != dimensions:
        raise ValueError(f"{name} needs {dimensions} dimensions, got {tensor.dim()}")
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} must have stride 1 in its last dimension; call .contiguous() on it first")


def check_alike(name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    """Raise ValueError unless both tensors have one dtype and one device."""
    if tensor.dtype != like.dtype:
        raise ValueError(f"{name} has dtype {tensor.dtype} but {like_name} has {like.dtype}; they must be equal")
    check_device(name, tensor, like_name, like)


def check_device(name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device} but {like_name} is on {like.device}; move one of them")


def program_count(tensor: torch.Tensor, per_multiprocessor: int) -> int:
    """How many programs a persistent kernel starts: so many per multiprocessor, and a few in the CPU interpreter."""
    return per_multiprocessor * _multiprocessors(tensor.device) if tensor.is_cuda else 3


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """Asked for once: the query costs more than the launch of a small kernel."""
    return torch.cuda.get_device_properties(device).multi_processor_count
