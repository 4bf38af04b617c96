"""Bytes that one rank communicates, by formula: what `parallel.comm.traffic` must count."""

from collections import Counter
from collections.abc import Sequence

from kernels.common import accumulation_dtype
from parallel.instruction import Instruction, Kind
from parallel.optimizer import summed_spans

from .llama import Chunk, Llama


def pass_traffic(model: Llama, instructions: Sequence[Instruction], tokens: int) -> Counter[tuple[str, str]]:
    """Bytes of a rank's list of instructions, by (operation, group name); `tokens` of each micro-batch with padding.

    With A = tokens * hidden * bytes of the dtype, over tp (nothing where tp is 1):

    - FORWARD: 2 gathers and 2 scatters of A a layer; the embedding one scatter; the head one gather of its input, one
      of three numbers a token and rank of tp, and in training one scatter
    - BACKWARD: 4 gathers and 2 scatters a layer, of which put-off weight gradients leave 2 gathers where nothing is
      recomputed; the embedding one gather
    - WEIGHT: 4 gathers a layer

    and between stages A / tp for each SEND and each RECEIVE.
    """
    traffic: Counter[tuple[str, str]] = Counter()
    tp, itemsize = model.grid.tp.size, model.dtype.itemsize
    whole = tokens * model.config.hidden_size * itemsize
    put_off = {(i.micro_batch, i.chunk) for i in instructions if i.kind is Kind.WEIGHT}
    trained = {(i.micro_batch, i.chunk) for i in instructions if i.kind is Kind.BACKWARD}
    for instruction in instructions:
        chunk, key = model.chunks[instruction.chunk], (instruction.micro_batch, instruction.chunk)
        if instruction.kind in _DIRECTIONS:
            traffic[_DIRECTIONS[instruction.kind]] += whole // tp
        elif tp > 1 and instruction.kind is Kind.FORWARD:
            traffic += _forward(chunk, tokens, whole, key in trained)
        elif tp > 1 and instruction.kind is Kind.BACKWARD:
            branches = [branch for block in chunk.blocks for branch in (block.attention, block.mlp)]
            gathers = sum(1 if key in put_off and not branch.recompute else 2 for branch in branches)
            traffic["all_gather", "tp"] += (gathers + chunk.is_first) * whole
            traffic["reduce_scatter", "tp"] += len(branches) * whole
        elif tp > 1 and instruction.kind is Kind.WEIGHT:
            traffic["all_gather", "tp"] += 4 * len(chunk.blocks) * whole
    return traffic


_DIRECTIONS = {
    Kind.SEND_FORWARD: ("send", "forward"),
    Kind.RECEIVE_FORWARD: ("receive", "forward"),
    Kind.SEND_BACKWARD: ("send", "backward"),
    Kind.RECEIVE_BACKWARD: ("receive", "backward"),
}


def _forward(chunk: Chunk, tokens: int, whole: int, training: bool) -> Counter[tuple[str, str]]:
    model = chunk.model
    statistics = tokens * 3 * accumulation_dtype(model.dtype).itemsize * model.grid.tp.size
    gathered = 2 * len(chunk.blocks) * whole + chunk.is_last * (whole + statistics)
    scattered = (2 * len(chunk.blocks) + chunk.is_first + (chunk.is_last and training)) * whole
    return Counter({("all_gather", "tp"): gathered, ("reduce_scatter", "tp"): scattered})


def update_traffic(model: Llama) -> Counter[tuple[str, str]]:
    """Bytes of one optimizer step, by (operation, group name).

    For n elements in the rank's buffer, padding included: a reduce-scatter of n in the accumulation dtype and an
    all-gather of n in the model's dtype over dp; all-reduces of the spans whose gradients are summed over tp (norms),
    kv (replicated heads) and ends (a tied embedding); one number over all ranks.
    """
    traffic: Counter[tuple[str, str]] = Counter()
    buffer, grid = model.buffer, model.grid
    accumulation = accumulation_dtype(model.dtype).itemsize
    if grid.dp.size > 1:
        traffic["reduce_scatter", "dp"] += buffer.length * accumulation
        traffic["all_gather", "dp"] += buffer.length * model.dtype.itemsize
    for bucket in buffer.buckets:
        for group, first, last in summed_spans(bucket):
            traffic["all_reduce", group] += (last - first) * accumulation
    if grid.world.size > 1:
        traffic["all_reduce", "world"] += accumulation
    return traffic
