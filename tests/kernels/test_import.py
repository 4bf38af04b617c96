import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import torch
import kernels
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
import kernels.rmsnorm
config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
logits = LlamaForCausalLM(config)(torch.tensor([[1, 2, 3]])).logits
assert logits.isfinite().all()
assert kernels.__file__.startswith({root!r})
assert kernels.rmsnorm.rmsnorm(torch.ones(1, 8), torch.ones(8), 1e-5).isfinite().all()
print("fine")
"""


def test_transformers_works_beside_our_kernels():
    """transformers imports whatever package `kernels` comes first on the path: ours, when run from here."""
    program = PROGRAM.format(root=str(ROOT))
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "fine", run.stderr


def test_twins_run_where_triton_is_missing():
    """macOS has no Triton: everything imports there, and CPU tensors take the twins."""
    program = """
import sys
sys.modules["triton"] = None  # what Python keeps for a module that cannot be imported
import torch
from kernels.attention import attention
from kernels.decode import decode_attention
from kernels.documents import Documents
from kernels.swiglu import _forward_kernel
from kernels.rmsnorm import rmsnorm
from kernels.rope import rope
from kernels.swiglu import swiglu
x = torch.randn(6, 4, 8)
y = attention(x, x, x, Documents.build([0, 2, 6], "cpu"))
assert y.isfinite().all() and swiglu(rmsnorm(x[:, 0], torch.ones(8), 1e-5)).shape == (6, 4)
try:
    _forward_kernel[(1,)]
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "this machine has no Triton" in result.stdout
