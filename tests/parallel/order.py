"""Would this order of operations hang, or swap tensors, on NCCL? gloo forgives both.

The model, stricter than gloo: a rank issues its operations in program order; a group carries one operation at a time,
in the order each member issued them; an operation begins when all members have come to it, so a send is done only when
its receive is posted; `wait` stops the rank until the operation is done. Members' operations that meet must agree in
kind, shape and dtype, a send with a receive.
"""

from collections import defaultdict, deque

MATCHING = {"send": "receive", "receive": "send"}


def check_order(records):
    """AssertionError naming what is wrong. `records`: `comm.record` of every rank, in rank order."""
    programs = [deque(record) for record in records]
    channels = defaultdict(lambda: defaultdict(deque))  # (group, ranks) -> rank -> operations at its head
    done = [set() for _ in records]
    names = [{} for _ in records]
    moved = True
    while moved:
        moved = False
        for rank, program in enumerate(programs):
            while program:
                kind, number, *rest = program[0]
                if kind == "wait" and number not in done[rank]:
                    break
                program.popleft()
                moved = True
                if kind == "start":
                    operation, group, ranks, shape, dtype = rest
                    assert rank in ranks
                    names[rank][number] = f"{operation} {shape} in {group} {ranks}"
                    channels[group, ranks][rank].append((number, operation, shape, dtype))
        for (group, ranks), waiting in channels.items():
            while all(waiting[rank] for rank in ranks):
                heads = {rank: waiting[rank].popleft() for rank in ranks}
                _agree(group, heads)
                for rank, (number, *_) in heads.items():
                    done[rank].add(number)
                moved = True
    stuck = [f"rank {rank} waits for {names[rank][program[0][1]]}" for rank, program in enumerate(programs) if program]
    assert not stuck, "; ".join(stuck)
    left = [f"{group} rank {rank}: {len(ops)}" for (group, _), w in channels.items() for rank, ops in w.items() if ops]
    assert not left, f"operations without partners: {left}"


def _agree(group, heads):
    (first, (_, operation, shape, dtype)), *others = heads.items()
    wanted = MATCHING.get(operation, operation)
    for rank, (_, their_operation, their_shape, their_dtype) in others:
        assert (their_operation, their_shape, their_dtype) == (wanted, shape, dtype), (
            f"{group}: rank {first} has {operation} {shape} {dtype} where rank {rank} has "
            f"{their_operation} {their_shape} {their_dtype}"
        )
