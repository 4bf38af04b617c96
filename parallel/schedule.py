"""Pipeline schedules: a pure function from the shape of the pipeline to each rank's list of instructions.

The executor runs these lists, the planner times them, `python -m parallel.pipeline` draws them. Every rank computes all
of them for itself, so the same arguments give the same lists everywhere. Three schedules:

- `1f1b`: one forward, one backward (PipeDream-flush, arXiv 2104.04473 section 2.2). Rank r holds min(stages - r,
  micro_batches) micro-batches at most. Bubble (stages - 1) / (micro_batches + stages - 1).
- `interleaved`: 1F1B over `chunks` model chunks a rank (arXiv 2104.04473 section 2.2.2). Idle over working time
  (stages - 1) / (chunks * micro_batches), bytes 1 + (stages - 1) / (stages * chunks) of 1F1B's.
- `zb`: the weights' gradients fill the bubble (zero bubble, arXiv 2401.10241), see parallel/zero_bubble.py.

Transfers. Activations from a rank to the next (from the last to the first, with several chunks) are one channel,
gradients from a rank to the previous are another. Transfers of a channel match by order alone, so both lists name them
in the same order: that in which the sender makes the tensors. A SEND stands right behind the pass that makes its
tensor. A RECEIVE stands one pass before the one that needs it, so that the transfer runs beside that pass; earlier,
where a later transfer of the same channel is needed first.

No list can block: a pass waits only for transfers whose SENDs stand behind passes that the order of passes, legal by
itself, has already run, and the RECEIVEs of a channel are posted in its order before the pass that needs the last.
This holds as long as no rank's host waits for its device in the middle of a list.
"""

from collections.abc import Sequence

from . import zero_bubble
from .instruction import COMPUTE, Costs, Instruction, Kind, virtual_stage
from .simulate import peak_bytes, simulate

__all__ = ["COMPUTE", "SCHEDULES", "Costs", "Instruction", "Kind", "build", "validation", "virtual_stage"]

SCHEDULES = ("1f1b", "interleaved", "zb")


def build(
    name: str, stages: int, micro_batches: int, chunks: int, costs: Costs, byte_limit: float | None = None
) -> list[list[Instruction]]:
    """One training step: a list of instructions for each of `stages` ranks.

    Args:
        name: `1f1b` (one chunk), `interleaved` (two or more) or `zb` (any number).
        stages, micro_batches, chunks: any numbers from 1 up; fewer micro-batches than stages too.
        costs: one entry for each of the `stages * chunks` virtual stages.
        byte_limit: the most bytes a rank may hold, in the unit of `costs`. `zb` keeps to it, by default to
            `zero_bubble.default_limit`; the other two hold what they hold.

    Raises ValueError where the schedule does not fit the chunks, and where a byte limit is below what is needed.
    """
    _check_sizes(stages, micro_batches, chunks)
    assert len(costs.forward) == stages * chunks, "costs need one entry for each virtual stage"
    check_chunks(name, chunks)
    if name not in SCHEDULES:
        raise ValueError(f"--schedule {name}: expected one of {', '.join(SCHEDULES)}")
    plain = _lists(classic(stages, micro_batches, chunks), stages, chunks)
    need = max(peak_bytes(plain, costs))
    if name == "zb" and stages > 1:
        limit = zero_bubble.default_limit(stages, micro_batches, chunks, costs) if byte_limit is None else byte_limit
        lists = _lists(zero_bubble.orders(stages, micro_batches, chunks, costs, limit), stages, chunks)
        # With WEIGHT at once, as under full recompute, and several chunks, there can be nothing to gain.
        slower = need <= limit and simulate(plain, costs).total < (1 - 1e-9) * simulate(lists, costs).total
        return plain if slower else lists
    if byte_limit is not None and need > byte_limit:  # one stage waits for nothing: zb has no bubble to fill
        remedy = "" if name == "zb" else ": use --schedule zb"
        raise ValueError(f"--schedule {name} holds {need:g} bytes, above the limit of {byte_limit:g}{remedy}")
    return plain


def check_chunks(name: str, chunks: int) -> None:
    """ValueError for a number of chunks that the schedule does not take."""
    if name == "1f1b" and chunks != 1:
        raise ValueError(f"--schedule 1f1b takes one chunk, not {chunks}: use --chunks 1, or --schedule interleaved")
    if name == "interleaved" and chunks < 2:
        raise ValueError("--schedule interleaved needs two or more chunks: add --chunks 2, or use --schedule 1f1b")


def validation(stages: int, micro_batches: int, chunks: int) -> list[list[Instruction]]:
    """Forward passes only: a list of instructions for each rank; micro-batches stream through the stages."""
    _check_sizes(stages, micro_batches, chunks)
    order = [Instruction(Kind.FORWARD, i, c) for i, c in _grouped(stages, micro_batches, chunks) if i >= 0]
    return _lists([order] * stages, stages, chunks)


def _check_sizes(stages: int, micro_batches: int, chunks: int) -> None:
    for label, value in (("stages", stages), ("micro-batches", micro_batches), ("chunks", chunks)):
        if value < 1:
            raise ValueError(f"pipeline: {label} must be 1 or more, not {value}")


def _grouped(stages: int, micro_batches: int, chunks: int) -> list[tuple[int, int]]:
    """`(micro_batch, chunk)` in forward order: groups of `stages` micro-batches go through chunk after chunk.

    The first group is filled up with micro-batches that do not exist, numbered below 0.
    """
    return [
        (micro_batch, chunk)
        for start in range(micro_batches % -stages, micro_batches, stages)
        for chunk in range(chunks)
        for micro_batch in range(start, start + stages)
    ]


def classic(stages: int, micro_batches: int, chunks: int) -> list[list[Instruction]]:
    """Passes of 1F1B (one chunk) or interleaved 1F1B (more), without transfers: a list for each rank.

    A rank runs its first forwards, then a forward and a backward in turn, then the backwards that remain. The order is
    made for whole groups of `stages` micro-batches; leaving out those that do not exist keeps it legal, because passes
    of different micro-batches need nothing of each other.
    """
    grouped = _grouped(stages, micro_batches, chunks)
    forwards = [Instruction(Kind.FORWARD, i, c) for i, c in grouped]
    backwards = [Instruction(Kind.BACKWARD, i, chunks - 1 - c) for i, c in grouped]
    if stages == 1:  # no rank waits for another: each micro-batch leaves before the next one comes
        starts = range(0, len(grouped), chunks)
        return [[step for i in starts for step in forwards[i : i + chunks] + backwards[i : i + chunks]]]
    orders = []
    for rank in range(stages):
        behind = stages - 1 - rank
        first = behind if chunks == 1 else min(2 * behind + (chunks - 1) * stages, len(forwards))
        order = forwards[:first]
        for forward, backward in zip(forwards[first:], backwards, strict=False):
            order += [forward, backward]
        order += backwards[len(forwards) - first :]
        orders.append([step for step in order if step.micro_batch >= 0])
    return orders


def _lists(orders: Sequence[Sequence[Instruction]], stages: int, chunks: int) -> list[list[Instruction]]:
    """Passes of all ranks with their transfers and markers."""
    receives = _receives(orders, stages, chunks)
    return [
        _with_markers(_with_transfers(order, rank, receives[rank], stages, chunks)) for rank, order in enumerate(orders)
    ]


def _user(step: Instruction, rank: int, stages: int, chunks: int) -> tuple[int, Instruction] | None:
    """The rank and pass that need a pass's tensor, if they are another rank's."""
    forward = step.kind is Kind.FORWARD
    needed = virtual_stage(rank, step.chunk, stages) + (1 if forward else -1)
    if step.kind is Kind.WEIGHT or stages == 1 or not 0 <= needed < stages * chunks:
        return None
    return needed % stages, Instruction(step.kind, step.micro_batch, needed // stages)


def _receives(orders: Sequence[Sequence[Instruction]], stages: int, chunks: int) -> list[list[list[Instruction]]]:
    """For each rank and each of its passes, the RECEIVEs to be posted before it."""
    place = [{step: index for index, step in enumerate(order)} for order in orders]
    before: list[list[list[Instruction]]] = [[[] for _ in order] for order in orders]
    for sender, order in enumerate(orders):
        for kind, receive in ((Kind.FORWARD, Kind.RECEIVE_FORWARD), (Kind.BACKWARD, Kind.RECEIVE_BACKWARD)):
            users = [_user(step, sender, stages, chunks) for step in order if step.kind is kind]
            posts: list[tuple[int, int, Instruction]] = []
            latest = len(order) * stages  # beyond the end of every list
            for rank, use in reversed([user for user in users if user]):
                latest = min(latest, max(place[rank][use] - 1, 0))
                posts.append((rank, latest, Instruction(receive, use.micro_batch, use.chunk, sender)))
            for rank, index, instruction in reversed(posts):
                before[rank][index].append(instruction)
    return before


def _with_transfers(
    order: Sequence[Instruction], rank: int, receives: list[list[Instruction]], stages: int, chunks: int
) -> list[Instruction]:
    """One rank's passes with the RECEIVEs before them and the SENDs behind them."""
    instructions: list[Instruction] = []
    for step, posted in zip(order, receives, strict=True):
        instructions += [*posted, step]
        user = _user(step, rank, stages, chunks)
        if user:
            send = Kind.SEND_FORWARD if step.kind is Kind.FORWARD else Kind.SEND_BACKWARD
            instructions.append(Instruction(send, step.micro_batch, step.chunk, user[0]))
    return instructions


def _with_markers(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Say where a chunk's weights are first read and, in training, where its gradients are complete."""
    last = {step.chunk: i for i, step in enumerate(instructions) if step.kind in (Kind.BACKWARD, Kind.WEIGHT)}
    first = {step.chunk: i for i, step in reversed(list(enumerate(instructions))) if step.kind is Kind.FORWARD}
    result: list[Instruction] = []
    complete: list[Instruction] = []
    for index, step in enumerate(instructions):
        if step.kind is not Kind.SEND_BACKWARD:  # the other rank waits for it: it goes first
            result += complete
            complete = []
        if step.kind is Kind.FORWARD and first[step.chunk] == index:
            result.append(Instruction(Kind.WEIGHTS_NEEDED, chunk=step.chunk))
        result.append(step)
        if last.get(step.chunk) == index:
            complete = [Instruction(Kind.GRADIENTS_COMPLETE, chunk=step.chunk)]
    return result + complete
