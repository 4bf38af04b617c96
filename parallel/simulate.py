"""Check a schedule's lists and play them through in time, without tensors.

The model of the network is the strictest that the executor relies on. A channel (see parallel/schedule.py) carries
one transfer at a time, in order: transfer k starts when its SEND and its RECEIVE have both been issued and transfer
k - 1 is over. A rank that issues SEND or RECEIVE goes on at once; FORWARD and BACKWARD wait for the transfer they need.
Which rank gets how far does not depend on times, so lists that end once end always.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .instruction import COMPUTE, SENDS, Costs, Instruction, Kind, virtual_stage

Lists = Sequence[Sequence[Instruction]]
RECEIVES = {receive: send for send, receive in SENDS.items()}


@dataclass(frozen=True)
class Pass:
    """One FORWARD, BACKWARD or WEIGHT in time."""

    start: float
    end: float
    instruction: Instruction


@dataclass(frozen=True)
class Timeline:
    """What `simulate` found; times and bytes in the units of the costs."""

    passes: list[list[Pass]]
    """A list for each rank, in order."""
    total: float
    """Time from the start to the end of the last pass of any rank."""
    bubble: float
    """Idle share of all ranks' time: 1 - (sum of all passes' times) / (ranks * total)."""
    peak_bytes: list[float]
    """The most bytes each rank holds at a time, see `peak_bytes`."""


def peak_bytes(lists: Lists, costs: Costs) -> list[float]:
    """The most bytes each rank holds at a time, a number a rank. It depends on the order alone, not on times.

    A micro-batch holds `held_forward` from the start of its FORWARD to the end of its BACKWARD. Where its WEIGHT is put
    off it holds the larger of both amounts during BACKWARD, then `held_backward` to the end of WEIGHT. Weights,
    gradients and tensors on their way between ranks are not counted.
    """
    peaks = []
    for rank, instructions in enumerate(lists):
        deferred = _deferred(instructions)
        held = peak = 0.0
        for step in instructions:
            if step.kind not in COMPUTE:
                continue
            stage = virtual_stage(rank, step.chunk, len(lists))
            first, second = costs.held_forward[stage], costs.held_backward[stage]
            if step.kind is Kind.FORWARD:
                held += first
                peak = max(peak, held)
            elif step.kind is Kind.WEIGHT:
                held -= second
            elif (step.micro_batch, step.chunk) in deferred:
                peak = max(peak, held - first + max(first, second))
                held += second - first
            else:
                held -= first
        peaks.append(peak)
    return peaks


def simulate(lists: Lists, costs: Costs, transfer_time: float = 0.0) -> Timeline:
    """Run the lists, each transfer taking `transfer_time`. ValueError names what is wrong with lists that cannot run.

    BACKWARD takes `backward + weight` where no WEIGHT follows for the same micro-batch and chunk.
    """
    check_order(lists)
    played = _Play(lists, costs, transfer_time)
    played.run()
    total = max((passes[-1].end for passes in played.passes if passes), default=0.0)
    busy = sum(one.end - one.start for passes in played.passes for one in passes)
    bubble = 1 - busy / (len(lists) * total) if total else 0.0
    return Timeline(played.passes, total, bubble, peak_bytes(lists, costs))


def check(lists: Lists, micro_batches: int, chunks: int, training: bool = True) -> None:
    """Prove the lists: complete, in legal order, channels matched, markers in place, free of deadlock.

    Raises ValueError naming rank and instruction of the first fault.
    """
    for rank, instructions in enumerate(lists):
        _check_complete(rank, instructions, micro_batches, chunks, training)
        _check_markers(rank, instructions, training)
    check_order(lists)
    _check_transfers(lists, chunks)
    simulate(lists, Costs.uniform(len(lists), chunks))


def _deferred(instructions: Iterable[Instruction]) -> set[tuple[int, int]]:
    return {(step.micro_batch, step.chunk) for step in instructions if step.kind is Kind.WEIGHT}


def _describe(rank: int, step: Instruction) -> str:
    side = f" with rank {step.peer}" if step.peer >= 0 else ""
    return f"rank {rank}: {step.kind.name} of micro-batch {step.micro_batch}, chunk {step.chunk}{side}"


def _check_complete(rank: int, instructions: Sequence[Instruction], micro_batches: int, chunks: int, training: bool):
    """Every pass once: FORWARD, then in training BACKWARD, then WEIGHT at most once; and nothing else."""
    expected = {(i, c) for i in range(micro_batches) for c in range(chunks)}
    for kind in COMPUTE:
        seen = [(step.micro_batch, step.chunk) for step in instructions if step.kind is kind]
        wanted = expected if kind is Kind.FORWARD or (training and kind is Kind.BACKWARD) else set()
        wrong = wanted - set(seen) or set(seen) - (expected if training else wanted)
        if len(seen) != len(set(seen)):
            wrong = {one for one in seen if seen.count(one) > 1}
        if wrong:
            raise ValueError(f"{_describe(rank, Instruction(kind, *min(wrong)))} does not stand in its list just once")


def check_order(lists: Lists) -> None:
    """On each rank BACKWARD stands behind its FORWARD and WEIGHT behind its BACKWARD, and passes that need a tensor of
    another chunk of the same rank behind the pass that makes it; ValueError otherwise."""
    stages = len(lists)
    for rank, instructions in enumerate(lists):
        last = max((virtual_stage(rank, step.chunk, stages) for step in instructions), default=0)
        done: set[tuple[Kind, int, int]] = set()
        for step in instructions:
            if step.kind not in COMPUTE:
                continue
            kind, i, chunk = step.kind, step.micro_batch, step.chunk
            if kind is Kind.FORWARD:
                needs = [(kind, i, chunk - 1)] if stages == 1 and chunk else []
            elif kind is Kind.WEIGHT:
                needs = [(Kind.BACKWARD, i, chunk)]
            else:
                needs = [(Kind.FORWARD, i, chunk)]
                needs += [(kind, i, chunk + 1)] if stages == 1 and virtual_stage(rank, chunk, stages) < last else []
            if not done.issuperset(needs):
                raise ValueError(f"{_describe(rank, step)} stands before what it needs")
            done.add((kind, i, chunk))


def _check_markers(rank: int, instructions: Sequence[Instruction], training: bool) -> None:
    """WEIGHTS_NEEDED once before a chunk's first FORWARD, GRADIENTS_COMPLETE once behind its last backward work."""
    for chunk in sorted({step.chunk for step in instructions}):
        own = [step.kind for step in instructions if step.chunk == chunk]
        own = [kind for kind in own if kind in (*COMPUTE, Kind.WEIGHTS_NEEDED, Kind.GRADIENTS_COMPLETE)]
        ends = [Kind.WEIGHTS_NEEDED] + [Kind.GRADIENTS_COMPLETE] * training
        if [own[0], *own[-1:] * training] != ends or own.count(ends[0]) + own.count(Kind.GRADIENTS_COMPLETE) != len(
            ends
        ):
            raise ValueError(f"rank {rank}: WEIGHTS_NEEDED or GRADIENTS_COMPLETE of chunk {chunk} is misplaced")


def _needed_transfer(rank: int, step: Instruction, stages: int, virtual_stages: int) -> Instruction | None:
    """The receive a pass waits for, if its tensor comes from another rank."""
    stage = virtual_stage(rank, step.chunk, stages)
    if stages == 1:
        return None
    if step.kind is Kind.FORWARD and stage > 0:
        return Instruction(Kind.RECEIVE_FORWARD, step.micro_batch, step.chunk, (rank - 1) % stages)
    if step.kind is Kind.BACKWARD and stage + 1 < virtual_stages:
        return Instruction(Kind.RECEIVE_BACKWARD, step.micro_batch, step.chunk, (rank + 1) % stages)
    return None


def _matching_send(rank: int, receive: Instruction, stages: int) -> Instruction:
    """The send on the other side of a receive."""
    stage = virtual_stage(rank, receive.chunk, stages) + (-1 if receive.kind is Kind.RECEIVE_FORWARD else 1)
    return Instruction(RECEIVES[receive.kind], receive.micro_batch, stage // stages, rank)


def _check_transfers(lists: Lists, chunks: int) -> None:
    """Each pass that needs another rank's tensor has one RECEIVE before it and one SEND behind the pass that makes it;
    there are no other transfers, and the two sides of a channel name them in the same order."""
    stages = len(lists)
    place = [{step: index for index, step in enumerate(instructions)} for instructions in lists]
    wanted = 0
    for rank, instructions in enumerate(lists):
        for step in instructions:
            receive = _needed_transfer(rank, step, stages, stages * chunks)
            if receive is None:
                continue
            wanted += 1
            send, maker = _matching_send(rank, receive, stages), receive.peer
            if place[rank].get(receive, len(instructions)) > place[rank][step]:
                raise ValueError(f"{_describe(rank, step)} has no RECEIVE before it")
            made = place[maker].get(Instruction(step.kind, step.micro_batch, send.chunk), len(lists[maker]))
            if place[maker].get(send, -1) < made:
                raise ValueError(f"{_describe(maker, send)} is missing or stands before the pass that makes its tensor")
    for kinds in (SENDS, RECEIVES):
        if sum(step.kind in kinds for instructions in lists for step in instructions) != wanted:
            raise ValueError("there are transfers that no pass needs")
    for rank, instructions in enumerate(lists):
        for receive_kind, send_kind in RECEIVES.items():
            peer = (rank - 1 if receive_kind is Kind.RECEIVE_FORWARD else rank + 1) % stages
            received = [_matching_send(rank, step, stages) for step in instructions if step.kind is receive_kind]
            sent = [step for step in lists[peer] if step.kind is send_kind]
            for there, here in zip(sent, received, strict=True):
                if there != here:
                    raise ValueError(f"{_describe(peer, there)} meets the RECEIVE for {_describe(peer, here)}")


class _Channel:
    """Transfers of one direction between two ranks: when each was issued on the two sides, and when it was over."""

    def __init__(self):
        self.sends: list[float] = []
        self.receives: list[float] = []
        self.ends: list[float] = []

    def carry(self, transfer_time: float) -> None:
        while len(self.ends) < min(len(self.sends), len(self.receives)):
            k = len(self.ends)
            self.ends.append(max(self.sends[k], self.receives[k], self.ends[-1] if k else 0.0) + transfer_time)


class _Play:
    """The lists being run."""

    def __init__(self, lists: Lists, costs: Costs, transfer_time: float):
        self.lists, self.costs, self.transfer_time = lists, costs, transfer_time
        self.stages, self.virtual_stages = len(lists), len(costs.forward)
        self.passes: list[list[Pass]] = [[] for _ in lists]
        self.position = [0] * self.stages
        self.clock = [0.0] * self.stages
        self.deferred = [_deferred(instructions) for instructions in lists]
        self.channels: dict[tuple[Kind, int, int], _Channel] = {}  # by (send's kind, sender, receiver)
        self.posted: dict[tuple[int, Instruction], int] = {}  # (rank, receive) -> its number in the channel

    def run(self) -> None:
        """Every rank as far as it comes, until nothing moves; ValueError where some have not come to the end."""
        moved = True
        while moved:
            moved = False
            for rank, instructions in enumerate(self.lists):
                while self.position[rank] < len(instructions) and self._step(rank, instructions[self.position[rank]]):
                    self.position[rank] += 1
                    moved = True
        blocked = [
            _describe(rank, instructions[at])
            for rank, (instructions, at) in enumerate(zip(self.lists, self.position, strict=True))
            if at < len(instructions)
        ]
        if blocked:
            raise ValueError(f"deadlock; waiting: {'; '.join(blocked)}")
        for (kind, sender, receiver), channel in self.channels.items():
            if len(channel.sends) != len(channel.receives):
                raise ValueError(f"{kind.name} from rank {sender} to rank {receiver} and its receives differ in number")

    def _channel(self, kind: Kind, sender: int, receiver: int) -> _Channel:
        return self.channels.setdefault((kind, sender, receiver), _Channel())

    def _step(self, rank: int, step: Instruction) -> bool:
        """Run one instruction; False where it must wait."""
        if step.kind in COMPUTE:
            return self._compute(rank, step)
        if step.kind in SENDS:
            channel = self._channel(step.kind, rank, step.peer)
            channel.sends.append(self.clock[rank])
            channel.carry(self.transfer_time)
        elif step.kind in RECEIVES:
            channel = self._channel(RECEIVES[step.kind], step.peer, rank)
            self.posted[rank, step] = len(channel.receives)
            channel.receives.append(self.clock[rank])
            channel.carry(self.transfer_time)
        return True

    def _compute(self, rank: int, step: Instruction) -> bool:
        start = self.clock[rank]
        receive = _needed_transfer(rank, step, self.stages, self.virtual_stages)
        if receive is not None:
            channel = self._channel(RECEIVES[receive.kind], receive.peer, rank)
            number = self.posted.get((rank, receive), len(channel.ends))
            if number >= len(channel.ends):
                return False
            start = max(start, channel.ends[number])
        stage = virtual_stage(rank, step.chunk, self.stages)
        if step.kind is Kind.FORWARD:
            time = self.costs.forward[stage]
        elif step.kind is Kind.WEIGHT:
            time = self.costs.weight[stage]
        else:
            put_off = (step.micro_batch, step.chunk) in self.deferred[rank]
            time = self.costs.backward[stage] + (0 if put_off else self.costs.weight[stage])
        self.clock[rank] = start + time
        self.passes[rank].append(Pass(start, start + time, step))
        return True
