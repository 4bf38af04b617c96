"""Compiles every Triton kernel ahead of time, as the launchers launch it; no GPU needed. Prints one JSON line a kernel.

Run as a program without TRITON_INTERPRET (the interpreter replaces the compiler at import):
`python compile_kernels.py sm_80 sm_90`.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import attention, attention_backward, attention_blocks, rmsnorm, rope, swiglu
from kernels.documents import Documents

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages")
TARGETS = {"sm_80": 80, "sm_90": 90, "safe": 89}
"""Tile table -> the compute capability it is compiled for."""
SHAPES = ((64, None), (128, 4096), (256, None))
"""(head_dim, window) of the attention kernels that are compiled."""


class Recorder:
    """Stands in for a kernel: keeps the arguments of its launches instead of running it."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, []

    def __getitem__(self, grid):
        return lambda *args, **keywords: self.launches.append((args, keywords))


def source_of(kernel, args, keywords):
    """The compiler's input for one launch, specialised as at run time: None and 1 fixed, multiples of 16 noted."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | {k: v for k, v in keywords.items() if k not in OPTIONS}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        specialised = not parameter.do_not_specialize
        aligned = [["tt.divisibility", 16]]
        if parameter.is_constexpr or value is None or (specialised and type(value) is int and value == 1):
            signature[parameter.name], constants[(index,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], attributes[(index,)] = TYPES[value.dtype], aligned
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if specialised and value % 16 == 0:
                attributes[(index,)] = aligned
    return ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)


def launch_all(architecture, dtype, attention_shapes):
    """Calls every launcher at a Llama's sizes, with few tokens. attention_shapes: (head_dim, window)."""
    tokens, hidden, width = 64, 4096, 11008
    x, weight = torch.empty(tokens, hidden, dtype=dtype), torch.empty(hidden, dtype=dtype)
    rstd, weight_grad = torch.empty(tokens), torch.empty(hidden)
    for other in (None, x):
        rmsnorm._triton_forward(x, weight, 1e-5, other, x)
        rmsnorm._triton_backward(x, x, weight, rstd, weight_grad, other, x)
    rmsnorm._triton_apply(x, weight, rstd)
    gate_up, half = torch.empty(tokens, 2 * width, dtype=dtype), torch.empty(tokens, width, dtype=dtype)
    swiglu._triton_forward(gate_up, half)
    swiglu._triton_backward(half, gate_up, gate_up, half)
    documents = Documents.build([0, 40, tokens], "cpu")
    attention_blocks.architecture = lambda device: architecture
    for head_dim, window in attention_shapes:
        heads, kv_heads = 8, 2
        table = torch.empty(tokens, head_dim // 2)
        packed = torch.empty(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
        rope._triton_rotate(packed, table, table, documents.positions, heads, kv_heads, False)
        q, k, v = packed.unflatten(1, (-1, head_dim)).split([heads, kv_heads, kv_heads], 1)
        out, lse = torch.empty_like(q), torch.empty(heads, tokens)
        attention._triton_forward(q, k, v, documents, documents, window, 0.1, out, lse)
        attention_backward._triton_backward(out, q, k, v, out, lse, documents, q, k, v, window, 0.1)


def resources(compiled):
    """Registers and stack bytes of a compiled kernel, from the cuobjdump that Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {"registers": int(re.search(r"REG:(\d+)", text)[1]), "stack": int(re.search(r"STACK:(\d+)", text)[1])}


def main(architectures):
    kernels = {
        (module, name): Recorder(value)
        for module in (rmsnorm, rope, swiglu, attention, attention_backward)
        for name, value in vars(module).items()
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel")
    }
    for (module, name), recorder in kernels.items():
        setattr(module, name, recorder)
    for architecture in architectures:
        for recorder in kernels.values():
            recorder.launches.clear()
        launch_all(architecture, torch.bfloat16, SHAPES)
        target = GPUTarget("cuda", TARGETS[architecture], 32)
        for (module, name), recorder in kernels.items():
            for args, keywords in recorder.launches:
                options = {k: keywords[k] for k in OPTIONS if k in keywords}
                compiled = triton.compile(source_of(recorder.kernel, args, keywords), target=target, options=options)
                row = {"architecture": architecture, "kernel": f"{module.__name__.split('.')[-1]}.{name}"}
                row |= {"head_dim": keywords.get("HEAD_DIM"), "window": bool(keywords.get("HAS_WINDOW"))}
                row |= {name: keywords.get(name) for name in OPTIONS}
                row |= {"shared": compiled.metadata.shared, **resources(compiled)}
                row["fp64"] = ".f64" in compiled.asm["ptx"]
                row["stmatrix"] = "stmatrix" in compiled.asm["ptx"]
                row["matrix"] = next((name for name in ("wgmma", "mma") if name + "." in compiled.asm["ptx"]), None)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
