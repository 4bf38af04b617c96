"""Operators of a Llama for training and inference: Triton kernels on CUDA tensors, plain-torch twins on CPU tensors.

Each file is one operator in two layers:

- `x_forward` / `x_backward`: plain functions without autograd, which may work in place and write into buffers given to
  them. Gradient functions are built from these.
- a public operator for any torch model: functional, differentiable, works under `torch.compile(fullgraph=True)`.

    from kernels.rmsnorm import rmsnorm, add_rmsnorm
    from kernels.rope import rope
    from kernels.swiglu import swiglu
    from kernels.documents import Documents
    from kernels.attention import attention, merge_attention
    from kernels.cross_entropy import cross_entropy
    from kernels.linear_cross_entropy import linear_cross_entropy
    from kernels.decode import decode_attention
    from kernels.paged_prefill import paged_prefill
    from kernels.paged_cache import write_pages
    from kernels.adamw import adamw_step
    from kernels.huggingface import patch_llama  # those of training, in a Llama of transformers

Nothing is exported here: an operator would hide the module of the same name.
"""
