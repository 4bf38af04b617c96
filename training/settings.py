"""Settings of a training run: the one source of the command line, its help and the run's `config.json`."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from parallel.schedule import check_chunks


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes. The defaults train a tiny model on the demo data on a laptop."""

    model: str = "tiny"
    """A preset name (random weights; the vocabulary is that of the data), or a Hugging Face folder or run folder to
    start from.
    """
    data: tuple[str, ...] = ()
    """Folders of token shards, or single sources in them, each FOLDER or FOLDER=SHARE of the training tokens; folders
    without a share divide the rest by size. None: the demo world's shards, made if absent.
    """
    tokenizer: str = ""
    """Tokenizer file or folder of data that does not name its own (Megatron pairs). Empty: the shards' own."""
    out: str = "runs/latest"
    """Run folder; an interrupted run in it is continued."""
    steps: int = 200
    """Optimizer steps of the whole run; the learning rate's cosine ends here."""
    stop_step: int = 0
    """Stop after this step with a checkpoint, to be continued by the same command (0: run to the end). For time-limited
    queues.
    """
    tp: int = 1
    """Ranks that split each layer, and between layers the tokens. Best within one node's fast links."""
    pp: int = 1
    """Ranks that split the layers among them (pipeline stages). Data-parallel ranks are what tp and pp leave."""
    chunks: int = 1
    """Parts of the model on each pipeline rank. More make a smaller bubble and more transfers; interleaved takes 2 or
    more.
    """
    schedule: Literal["1f1b", "interleaved", "zb"] = "1f1b"
    """Order of forward and backward passes in the pipeline. zb puts weight gradients off into the bubble: more
    exchanges under tp, and at most what one micro-batch grows by then above 1f1b's memory. `python -m
    parallel.pipeline` draws them.
    """
    pieces: int = 0
    """Pieces the tokens of a micro-batch are cut into under tp, so that the forward exchange of one runs beside the
    product of another (1: exchange and product in turn; 4 at most). 0: 2 on CUDA, 1 on a CPU, which does both itself.
    """
    recompute: str = "none"
    """Activations to compute again in the backward pass instead of keeping them: none, mlp (gate and up; 47 % less
    memory at 7B), attention (qkv and attention; 35 % less), full (both; 82 % less), or full-N: full in the first N
    layers of every rank.
    """
    global_batch_size: int = 16
    """Sequences a step, over all ranks."""
    micro_batch_size: int = 4
    """Sequences one rank computes at once; smaller needs less memory, larger is faster."""
    sequence_length: int = 512
    """Tokens in a sequence, documents packed into it; at most the model's context."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Of weights and activations; gradients, master weights and moments are float32 or wider. auto: bfloat16 on CUDA,
    float32 on CPU.
    """
    lr: float = 3e-4
    """Peak learning rate. 3e-4 is Llama-2-7B's; use about 1e-3 for the tiny preset."""
    min_lr_ratio: float = 0.1
    """Learning rate at the last step, as a share of the peak."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises from 0 to the peak."""
    weight_decay: float = 0.1
    """AdamW's; on matrices, not on norm gains."""
    beta1: float = 0.9
    """AdamW's decay of the gradient's running mean, per step."""
    beta2: float = 0.95
    """AdamW's decay of the squared gradient's running mean, per step; shorter than the 0.999 default, as for Llama."""
    eps: float = 1e-5
    """AdamW's, added to the root of the second moment. MEDITRON's value; Llama used 1e-5 too."""
    clip: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it. 0: never."""
    seed: int = 0
    """Of the random weights and of the order of samples."""
    validation_every: int = 100
    """Steps between validation losses (also measured before the first and after the last step; 0: never)."""
    validation_sequences: int = 32
    """Validation sequences of each source, at most."""
    checkpoint_every: int = 500
    """Steps between checkpoints (one is also written at the end; 0: only then)."""
    keep_last: int = 0
    """Checkpoints to keep; older ones are deleted once a newer one is whole (0: all)."""
    keep_every: int = 0
    """Steps between checkpoints that are kept for good whatever `--keep-last` says (0: none)."""
    timeout: float = 600.0
    """Seconds a rank waits for the others in one operation before it gives up."""
    heartbeat_limit: float = 15.0
    """Seconds without a sign of life (one is due every second) after which a rank counts as dead and all others end.
    torchrun itself kills what is left 30 seconds after the first process of its node has ended.
    """


MAY_CHANGE = frozenset(
    {"data", "tokenizer", "out", "tp", "pp", "chunks", "schedule", "pieces", "stop_step", "micro_batch_size"}
    | {"recompute", "timeout", "heartbeat_limit", "keep_last", "keep_every"}
    | {"validation_every", "validation_sequences", "checkpoint_every"}
)
"""Settings that an interrupted run may be continued with another value of: they do not change what is learned. (Data
and tokenizer are compared by content, not by path.)
"""


LIMITS: dict[str, tuple[float, float]] = {
    "stop_step": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "validation_every": (0, math.inf),
    "validation_sequences": (0, math.inf),
    "checkpoint_every": (0, math.inf),
    "keep_last": (0, math.inf),
    "keep_every": (0, math.inf),
    "chunks": (1, math.inf),
    "pieces": (0, 4),
    "steps": (1, math.inf),
    "global_batch_size": (1, math.inf),
    "micro_batch_size": (1, math.inf),
    "sequence_length": (1, math.inf),
    "lr": (0, 1),
    "min_lr_ratio": (0, 1),
    "weight_decay": (0, 1),
    "beta1": (0, 0.9999),
    "beta2": (0, 0.99999),
    "eps": (1e-15, 1),
    "clip": (0, 1e9),
    "seed": (0, 2**31 - 1),
    "timeout": (1, 1e6),
    "heartbeat_limit": (4, 1e6),
}
"""Smallest and largest value of each number; beyond them a run breaks or computes nonsense."""


def check(settings: Settings) -> None:
    """ValueError naming the flag for values no run can have."""
    for name, (low, high) in LIMITS.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            bound = f"at least {low}" if value < low else f"at most {high}"
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be {bound}")
    if not re.fullmatch(r"none|mlp|attention|full(-[1-9][0-9]*)?", settings.recompute):
        raise ValueError(f"--recompute {settings.recompute}: must be none, mlp, attention, full or full-N (as full-4)")
    check_chunks(settings.schedule, settings.chunks)


def check_batch(settings: Settings, dp: int) -> int:
    """Micro-batches of one rank in one step; ValueError when the sequences cannot be shared out evenly."""
    round_size = dp * settings.micro_batch_size
    if settings.global_batch_size % round_size:
        raise ValueError(
            f"--global-batch-size {settings.global_batch_size} is not a multiple of {round_size} "
            f"({dp} data-parallel ranks x --micro-batch-size {settings.micro_batch_size})"
        )
    return settings.global_batch_size // round_size


def parse_shares(data: tuple[str, ...]) -> list[tuple[str, float | None]]:
    """`FOLDER` and `FOLDER=SHARE` as (folder, share or None); ValueError for a share that is no number in (0, 1]."""
    parsed: list[tuple[str, float | None]] = []
    for text in data:
        folder, sign, share = text.rpartition("=")
        if not sign:
            parsed.append((text, None))
            continue
        try:
            value = float(share)
        except ValueError:
            raise ValueError(
                f"--data {text}: {share!r} is not a share, write FOLDER=0.01 for 1 % of the tokens"
            ) from None
        if not 0 < value <= 1:
            raise ValueError(f"--data {text}: a share lies between 0 and 1")
        parsed.append((folder, value))
    return parsed
