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
"""

from collections.abc import Sequence

from parallel import zero_bubble
from parallel.instruction import COMPUTE, Costs, Instruction, Kind, virtual_stage
from parallel.simulate import peak_bytes

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
    if name == "1f1b" and chunks != 1:
        raise ValueError(f"--schedule 1f1b takes one chunk, not {chunks}: use --chunks 1, or --schedule interleaved")
    if name == "interleaved" and chunks < 2:
        raise ValueError("--schedule interleaved needs two or more chunks: add --chunks 2, or use --schedule 1f1b")
    if name == "zb":
        orders = zero_bubble.orders(stages, micro_batches, chunks, costs, byte_limit)
    elif name in SCHEDULES:
        orders = classic(stages, micro_batches, chunks)
        need = max(peak_bytes(orders, costs))
        if byte_limit is not None and need > byte_limit:
            raise ValueError(
                f"--schedule {name} holds {need:g} bytes, above the limit of {byte_limit:g}: use --schedule zb"
            )
    else:
        raise ValueError(f"--schedule {name}: expected one of {', '.join(SCHEDULES)}")
    return _with_markers(_with_transfers(orders, stages, chunks))


def validation(stages: int, micro_batches: int, chunks: int) -> list[list[Instruction]]:
    """Forward passes only: a list of instructions for each rank; micro-batches stream through the stages."""
    _check_sizes(stages, micro_batches, chunks)
    order = [Instruction(Kind.FORWARD, i, c) for i, c in _grouped(stages, micro_batches, chunks) if i < micro_batches]
    return _with_markers(_with_transfers([order] * stages, stages, chunks))


def _check_sizes(stages: int, micro_batches: int, chunks: int) -> None:
    for label, value in (("stages", stages), ("micro-batches", micro_batches), ("chunks", chunks)):
        if value < 1:
            raise ValueError(f"pipeline: {label} must be 1 or more, not {value}")


def _grouped(stages: int, micro_batches: int, chunks: int) -> list[tuple[int, int]]:
    """`(micro_batch, chunk)` in forward order: groups of `stages` micro-batches go through chunk after chunk.

    The last group is filled up with micro-batches that do not exist.
    """
    return [
        (micro_batch, chunk)
        for start in range(0, micro_batches, stages)
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
    orders = []
    for rank in range(stages):
        behind = stages - 1 - rank
        first = behind if chunks == 1 else min(2 * behind + (chunks - 1) * stages, len(forwards))
        order = forwards[:first]
        for forward, backward in zip(forwards[first:], backwards, strict=False):
            order += [forward, backward]
        order += backwards[len(forwards) - first :]
        orders.append([step for step in order if step.micro_batch < micro_batches])
    return orders


def _with_transfers(orders: Sequence[Sequence[Instruction]], stages: int, chunks: int) -> list[list[Instruction]]:
    """Put sends and receives between the passes; the module's docstring says where and why."""
    place = [{step: index for index, step in enumerate(order)} for order in orders]
    before: list[list[list[Instruction]]] = [[[] for _ in range(len(order) + 1)] for order in orders]
    channels: dict[tuple[Kind, int], list[tuple[Instruction, Instruction]]] = {}
    for rank, order in enumerate(orders):
        for step in order:
            stage = virtual_stage(rank, step.chunk, stages)
            needed = stage + 1 if step.kind is Kind.FORWARD else stage - 1
            if step.kind is Kind.WEIGHT or stages == 1 or not 0 <= needed < stages * chunks:
                continue
            use = Instruction(step.kind, step.micro_batch, needed // stages)
            channels.setdefault((step.kind, rank), []).append((step, use))
    sends: list[dict[Instruction, Instruction]] = [{} for _ in orders]
    for (kind, rank), transfers in channels.items():
        forward = kind is Kind.FORWARD
        peer = (rank + 1 if forward else rank - 1) % stages
        send, receive = (
            (Kind.SEND_FORWARD, Kind.RECEIVE_FORWARD) if forward else (Kind.SEND_BACKWARD, Kind.RECEIVE_BACKWARD)
        )
        latest = len(orders[peer])
        posted = []
        for made, use in reversed(transfers):
            sends[rank][made] = Instruction(send, made.micro_batch, made.chunk, peer)
            latest = min(latest, max(place[peer][use] - 1, 0))
            posted.append((latest, Instruction(receive, use.micro_batch, use.chunk, rank)))
        for index, instruction in reversed(posted):
            before[peer][index].append(instruction)
    lists = []
    for rank, order in enumerate(orders):
        instructions: list[Instruction] = []
        for index, step in enumerate(order):
            instructions += [*before[rank][index], step]
            if step in sends[rank]:
                instructions.append(sends[rank][step])
        lists.append(instructions)
    return lists


def _with_markers(lists: Sequence[Sequence[Instruction]]) -> list[list[Instruction]]:
    """Say where a chunk's weights are first read and where its gradients are complete."""
    marked = []
    for instructions in lists:
        last = {step.chunk: i for i, step in enumerate(instructions) if step.kind in (Kind.BACKWARD, Kind.WEIGHT)}
        seen: set[int] = set()
        complete: Instruction | None = None
        result: list[Instruction] = []
        for index, step in enumerate(instructions):
            if complete and step.kind is not Kind.SEND_BACKWARD:
                result.append(complete)
                complete = None
            if step.kind is Kind.FORWARD and step.chunk not in seen:
                seen.add(step.chunk)
                result.append(Instruction(Kind.WEIGHTS_NEEDED, chunk=step.chunk))
            result.append(step)
            if last.get(step.chunk) == index:
                complete = Instruction(Kind.GRADIENTS_COMPLETE, chunk=step.chunk)
        marked.append([*result, complete] if complete else result)
    return marked
