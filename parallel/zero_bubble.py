"""The zero-bubble schedule: the weights' gradients are put off to where a rank would wait.

After arXiv 2401.10241 (its hand-made ZB-H1), but made by simulating the ranks with the real costs, and limited by
bytes: a micro-batch that waits for its WEIGHT holds more than one that waits for its BACKWARD, so a limit on
micro-batches would cost the last rank about 1.4 times 1F1B's memory.
"""

import heapq
from collections import deque
from dataclasses import dataclass

from .instruction import COMPUTE, Costs, Instruction, Kind, virtual_stage

TICKS = 1 << 20
"""Times are rounded to this share of the longest one: sums of whole numbers are exact, so passes of equal times end at
the same moment whatever they were added to."""


def default_limit(stages: int, micro_batches: int, chunks: int, costs: Costs) -> float:
    """1F1B's peak on its worst rank (with equal stages the first), plus what one micro-batch gains by being put off.

    1F1B's rank r holds min(stages - r, micro_batches) micro-batches; with several chunks, of all of them together.
    """
    peaks, gains = [], []
    for rank in range(stages):
        own = [virtual_stage(rank, chunk, stages) for chunk in range(chunks)]
        peaks.append(min(stages - rank, micro_batches) * sum(costs.held_forward[v] for v in own))
        growth = (costs.held_backward[v] - costs.held_forward[v] for v in own if costs.defers(v))
        gains.append(sum(max(0.0, bytes_) for bytes_ in growth))
    return max(peaks) + max(gains)


def least_limit(stages: int, chunks: int, costs: Costs) -> float:
    """The bytes of one micro-batch on the rank where it holds most: no order needs less, and one gets by with it."""
    return max(
        sum(costs.held_forward[virtual_stage(rank, chunk, stages)] for chunk in range(chunks)) for rank in range(stages)
    )


@dataclass(frozen=True)
class Policy:
    """What a simulated rank does first when it could do more than one thing."""

    warm_up: float
    """FORWARD comes before BACKWARD while fewer than warm_up * (stages - rank) micro-batches are in flight."""
    extra: int | None
    """The most that may be in flight, above 1F1B's stages - rank; None leaves it to the bytes alone."""
    patience: float = 0.0
    """A rank would rather wait than start a WEIGHT if a tensor comes within this share of WEIGHT's time."""
    in_turn: bool = True
    """Forwards keep the order of interleaved 1F1B; else another may run while the input of the next is not there."""


POLICIES = (
    Policy(warm_up=2.0, extra=1, in_turn=False),
    Policy(warm_up=0.0, extra=1),
    Policy(warm_up=1.0, extra=None),
    Policy(warm_up=0.0, extra=0, patience=0.5),
    Policy(warm_up=2.0, extra=None),
    Policy(warm_up=2.0, extra=1, patience=0.5),
    Policy(warm_up=2.0, extra=0),
)
"""Tried in this order; the shortest schedule is kept. Chosen from 360 combinations of such rules, tried on 74 pipelines
(4 to 8 stages, 1 to 4 chunks, equal and unequal times, 0.6 to 1.9 of the default limit): the best of these is 0.015 %
longer than the best of all on average, 0.41 % at most. The first never comes to a stand; one that keeps turns can where
bytes are short, because the forwards whose turn it is may leave no room for those that would free some."""
WORK = 60_000
"""Forward passes simulated before no further policy is tried, so that long schedules take seconds too."""


class _Rank:
    """One simulated rank: what it has done, what has arrived, what it holds."""

    def __init__(self, chunks: int):
        self.forwards, self.backwards = [0] * chunks, [0] * chunks  # done or running, by chunk; both in order
        self.inputs, self.gradients = [0] * chunks, [0] * chunks  # arrived, by chunk
        self.active = 0.0  # bytes between FORWARD and BACKWARD
        self.put_off: deque[tuple[int, int]] = deque()  # (micro_batch, chunk) between BACKWARD and WEIGHT
        self.put_off_bytes = 0.0
        self.running: tuple[Instruction, int] | None = None  # and when it ends
        self.order: list[Instruction] = []


class _Simulation:
    """Ranks that decide by a policy, moment by moment, what to run next."""

    def __init__(self, stages: int, micro_batches: int, chunks: int, costs: Costs, limit: float, policy: Policy):
        self.stages, self.micro_batches, self.chunks = stages, micro_batches, chunks
        self.costs, self.policy, self.limit = costs, policy, limit * (1 + 1e-9)  # sums of bytes are rounded
        longest = max(*costs.forward, *costs.backward, *costs.weight)
        self.ticks = {
            kind: [max(1, round(time / longest * TICKS)) for time in column]
            for kind, column in zip(COMPUTE, (costs.forward, costs.backward, costs.weight), strict=True)
        }
        self.ranks = [_Rank(chunks) for _ in range(stages)]
        self.ranks[0].inputs[0] = micro_batches
        self.now = 0
        self.events: list[tuple[int, int]] = []  # (time, rank) at which what a rank runs ends

    def run(self) -> int | None:
        """Run to the end; ticks it took, or None where the policy came to a stand."""
        for rank in range(self.stages):
            self._decide(rank)
        while self.events:
            self.now = self.events[0][0]
            awake: set[int] = set()
            while self.events and self.events[0][0] == self.now:
                awake |= self._finish(heapq.heappop(self.events)[1])
            for rank in sorted(awake):
                if self.ranks[rank].running is None:
                    self._decide(rank)
        left = any(done < self.micro_batches for rank in self.ranks for done in rank.backwards)
        return None if left or any(rank.put_off for rank in self.ranks) else self.now

    def _finish(self, rank: int) -> set[int]:
        """End what a rank runs and hand its tensor on; the ranks that may go on now."""
        step, _ = self.ranks[rank].running
        self.ranks[rank].running = None
        stage = virtual_stage(rank, step.chunk, self.stages)
        if step.kind is Kind.FORWARD and stage + 1 == self.stages * self.chunks:
            self.ranks[rank].gradients[step.chunk] += 1  # of the loss
        elif step.kind is Kind.FORWARD:
            neighbour = (rank + 1) % self.stages
            self.ranks[neighbour].inputs[(stage + 1) // self.stages] += 1
            return {rank, neighbour}
        elif step.kind is Kind.BACKWARD and stage:
            neighbour = (rank - 1) % self.stages
            self.ranks[neighbour].gradients[(stage - 1) // self.stages] += 1
            return {rank, neighbour}
        return {rank}

    def _decide(self, number: int) -> None:
        rank = self.ranks[number]
        forward, backward = self._next_forward(number), self._next_backward(number)
        in_flight = sum(rank.forwards) - sum(rank.backwards)
        first = (self.stages - number) * self.policy.warm_up
        if backward is not None and (forward is None or in_flight >= first):
            return self._backward(number, backward)
        if forward is not None:
            held = (
                rank.active + rank.put_off_bytes + self.costs.held_forward[virtual_stage(number, forward, self.stages)]
            )
            if rank.put_off and held > self.limit:
                return self._weight(number)
            return self._start(number, Instruction(Kind.FORWARD, rank.forwards[forward], forward))
        if rank.put_off and not self._expects(number):
            return self._weight(number)
        return None

    def _next_forward(self, number: int) -> int | None:
        """Chunk of the forward that may run: its input is there, and the micro-batches begun can still be ended."""
        rank = self.ranks[number]
        full = False
        if self.policy.extra is not None:
            allowed = self.stages - number + self.policy.extra + (self.chunks - 1) * self.stages
            full = sum(rank.forwards) - sum(rank.backwards) >= allowed
        left = [c for c in range(self.chunks) if rank.forwards[c] < self.micro_batches]
        left.sort(key=lambda c: (rank.forwards[c] // self.stages, c))
        for chunk in left[:1] if self.policy.in_turn else left:
            if full and rank.forwards[chunk] > rank.backwards[0]:
                continue  # the oldest micro-batch is let through, that it may end
            if rank.inputs[chunk] > rank.forwards[chunk] and self._can_end(number, chunk):
                return chunk
        return None

    def _can_end(self, number: int, chunk: int) -> bool:
        """Whether, after one more forward of a chunk, each micro-batch begun finds room for its forwards still to come.

        Without this, first chunks could fill the memory that no micro-batch can then leave (Dijkstra's banker). The
        oldest micro-batch ends first, then the next: each must fit, whole, beside what the younger ones hold now. Only
        where one chunk's backwards have come to is the sum at its largest. Bytes put off are freed by WEIGHT.
        """
        rank = self.ranks[number]
        sizes = self.costs.held_forward[number :: self.stages]
        if self.chunks == 1 or rank.active + sizes[chunk] + sum(sizes) <= self.limit:
            return rank.active + sizes[chunk] <= self.limit
        forwards = [done + (c == chunk) for c, done in enumerate(rank.forwards)]
        for oldest in set(rank.backwards):
            need = 0.0
            for size, begun, done in zip(sizes, forwards, rank.backwards, strict=True):
                need += size * ((done <= oldest) + max(0, begun - max(done, oldest + 1)))
            if need > self.limit:
                return False
        return True

    def _next_backward(self, number: int) -> int | None:
        rank = self.ranks[number]
        ready = [c for c in range(self.chunks) if rank.gradients[c] > rank.backwards[c]]
        return min(ready, key=lambda c: (rank.backwards[c] // self.stages, -c), default=None)

    def _expects(self, number: int) -> bool:
        """Whether a tensor comes so soon that a WEIGHT would hold it up."""
        rank = self.ranks[number]
        stage = virtual_stage(number, rank.put_off[0][1], self.stages)
        soon = self.now + self.policy.patience * self.ticks[Kind.WEIGHT][stage]
        for kind, neighbour in (
            (Kind.BACKWARD, (number + 1) % self.stages),
            (Kind.FORWARD, (number - 1) % self.stages),
        ):
            running = self.ranks[neighbour].running
            if running and running[0].kind is kind and running[1] < soon:
                return True
        return False

    def _backward(self, number: int, chunk: int) -> None:
        """BACKWARD with its WEIGHT put off if the bytes allow it; else room is made first, or both run as one, which
        holds nothing between them and gathers no operand twice. They do where WEIGHT would hold much more.
        """
        rank = self.ranks[number]
        stage = virtual_stage(number, chunk, self.stages)
        first, second = self.costs.held_forward[stage], self.costs.held_backward[stage]
        fits = rank.active + rank.put_off_bytes - first + max(first, second) <= self.limit
        at_once = not self.costs.defers(stage)
        if not (fits or at_once) and rank.put_off:
            return self._weight(number)
        rank.active -= first
        step = Instruction(Kind.BACKWARD, rank.backwards[chunk], chunk)
        if at_once or not fits:
            return self._start(number, step, with_weight=True)
        rank.put_off.append((step.micro_batch, chunk))
        rank.put_off_bytes += second
        return self._start(number, step)

    def _weight(self, number: int) -> None:
        rank = self.ranks[number]
        micro_batch, chunk = rank.put_off.popleft()
        rank.put_off_bytes -= self.costs.held_backward[virtual_stage(number, chunk, self.stages)]
        self._start(number, Instruction(Kind.WEIGHT, micro_batch, chunk))

    def _start(self, number: int, step: Instruction, with_weight: bool = False) -> None:
        rank = self.ranks[number]
        stage = virtual_stage(number, step.chunk, self.stages)
        if step.kind is Kind.FORWARD:
            rank.forwards[step.chunk] += 1
            rank.active += self.costs.held_forward[stage]
        elif step.kind is Kind.BACKWARD:
            rank.backwards[step.chunk] += 1
        end = self.now + self.ticks[step.kind][stage] + (self.ticks[Kind.WEIGHT][stage] if with_weight else 0)
        rank.order.append(step)
        rank.running = step, end
        heapq.heappush(self.events, (end, number))


def orders(stages: int, micro_batches: int, chunks: int, costs: Costs, byte_limit: float) -> list[list[Instruction]]:
    """Passes of the zero-bubble schedule, without transfers: a list for each rank, the shortest of all policies.

    ValueError where `byte_limit` is below what any order needs.
    """
    least = least_limit(stages, chunks, costs)
    if byte_limit < least:
        raise ValueError(f"--schedule zb: a limit of {byte_limit:g} bytes is below the {least:g} that any order needs")
    best: tuple[int, list[list[Instruction]]] | None = None
    for number, policy in enumerate(POLICIES):
        if number * stages * micro_batches * chunks >= WORK:
            break
        simulation = _Simulation(stages, micro_batches, chunks, costs, byte_limit, policy)
        time = simulation.run()
        if time is not None and (best is None or time < best[0]):
            best = time, [rank.order for rank in simulation.ranks]
    assert best is not None, "the first policy never comes to a stand"
    return best[1]
