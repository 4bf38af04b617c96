"""Which rank does what: all ranks as one tensor `[pp, dp, tp]`, every group a slice of it."""

from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from .comm import Group, all_reduce, start_receive, start_send


@dataclass(frozen=True)
class Grid:
    """The groups this rank belongs to. tp is innermost: its ranks share a node's fast links.

    Each directed link between neighbouring pipeline stages is a group of its own, so that no transfer waits behind one
    of another direction.
    """

    pp: Group
    dp: Group
    tp: Group
    world: Group
    kv: Group = field(default=Group("kv"))
    """Ranks of tp that hold the same key/value heads."""
    ends: Group = field(default=Group("ends"))
    """First and last pipeline stage, which both hold a tied embedding; a group of one elsewhere."""
    to_next: Group = field(default=Group("to_next"))
    """Activations to the next stage (of the last to the first, between chunks)."""
    from_previous: Group = field(default=Group("from_previous"))
    to_previous: Group = field(default=Group("to_previous"))
    """Gradients to the previous stage."""
    from_next: Group = field(default=Group("from_next"))
    timeout_seconds: float = 600.0

    @classmethod
    def single(cls) -> "Grid":
        """One process: every group has size 1."""
        return cls(Group("pp"), Group("dp"), Group("tp"), Group("world"))

    @classmethod
    def create(cls, tp: int, pp: int, timeout_seconds: float = 600.0) -> "Grid":
        """Groups of all processes that have joined (`launch.start_processes`); dp takes what tp and pp leave.

        `timeout_seconds`: how long a rank waits for the others of a group (a group does not inherit the default one's).
        """
        world = world_group()
        assert world.size % (tp * pp) == 0
        if world.size == 1:
            return cls.single()
        rank = world.rank
        ranks = torch.arange(world.size).view(pp, world.size // (tp * pp), tp)
        own = {
            name: _group(name, _slice_with(ranks, axis, rank), rank, timeout_seconds)
            for axis, name in enumerate(("pp", "dp", "tp"))
        }
        grid = cls(**own, world=world, timeout_seconds=timeout_seconds)
        return replace(grid, **_links(grid.pp.ranks, rank, timeout_seconds))

    def with_kv_replicas(self, kv_heads: int) -> "Grid":
        """This grid with the groups of tp ranks that share key/value heads, where tp is larger than their number.

        All ranks call it together.
        """
        replicas = max(1, self.tp.size // kv_heads)
        first = self.tp.rank // replicas * replicas
        members = self.tp.ranks[first : first + replicas]
        return replace(self, kv=_group("kv", members, self.world.ranks[self.world.rank], self.timeout_seconds))

    @property
    def is_first(self) -> bool:
        """Whether this rank is of the first pipeline stage."""
        return self.pp.rank == 0

    @property
    def is_last(self) -> bool:
        return self.pp.rank == self.pp.size - 1


def world_group() -> Group:
    """All processes that have joined (`launch.start_processes`)."""
    if not dist.is_initialized():
        return Group("world")
    return Group("world", tuple(range(dist.get_world_size())), dist.get_rank(), dist.group.WORLD)


def _slice_with(ranks: torch.Tensor, axis: int, rank: int) -> tuple[int, ...]:
    """The line along `axis` that `rank` lies on."""
    lines = ranks.movedim(axis, -1).flatten(0, 1)
    return tuple(lines[(lines == rank).any(1)][0].tolist())


def _group(name: str, members: tuple[int, ...], rank: int, timeout_seconds: float) -> Group:
    """A group of the `members` among whom this rank is, with its connections open."""
    if len(members) == 1:
        return Group(name, members, 0)
    group = _declare(name, members, rank, timeout_seconds)
    all_reduce(_one_number(), group)
    return group


def _declare(name: str, members: tuple[int, ...], rank: int, timeout_seconds: float) -> Group:
    """A group without connections; NCCL opens them when they are first used, and holds up the host until all come.

    Only members synchronise, so that 1,000 ranks do not wait for each of 1,000 groups. Its name in the store is made
    from its members and the number of groups this process has, which must then be the same on all members: every rank
    creates its groups in the same rounds, and one that has no partner in a round creates one with itself
    (`_partnerless`).
    """
    handle = dist.new_group(members, timeout=timedelta(seconds=timeout_seconds), use_local_synchronization=True)
    return Group(name, members, members.index(rank), handle)


def _one_number() -> torch.Tensor:
    return torch.zeros(1, device="cuda" if dist.get_backend() == "nccl" else "cpu")


def _partnerless(rank: int) -> None:
    """Keep this process's number of groups equal to that of the ranks that have a partner in this round."""
    dist.new_group([rank], use_local_synchronization=True)


def _links(stages: tuple[int, ...], rank: int, timeout_seconds: float) -> dict[str, Group]:
    """The directed links of this rank's pipeline, closed to a ring, and the group of its two ends.

    Every link is opened here by a first transfer, round after round. Opened in the middle of a step it would stop the
    host of the rank that comes first, and a schedule is free of deadlock only while transfers stop no one.
    """
    size, mine = len(stages), stages.index(rank)
    groups: dict[str, Group] = {}
    if size == 1:
        return groups
    # Rounds of disjoint links, by the stage they start from: even ones, odd ones, and what closes an odd ring.
    closing = [size - 1] if size % 2 else []
    for starts in (range(0, size - len(closing), 2), range(1, size, 2), closing):
        start = next((s for s in starts if mine in (s, (s + 1) % size)), None)
        for direction, at_start, at_end in (
            ("forward", "to_next", "from_previous"),
            ("backward", "from_next", "to_previous"),
        ):
            if start is None:
                _partnerless(rank)
                continue
            members = (stages[start], stages[(start + 1) % size])
            name = at_start if mine == start else at_end
            groups[name] = _declare(direction, members, rank, timeout_seconds)
            sends = name in ("to_next", "to_previous")
            (start_send if sends else start_receive)(_one_number(), groups[name]).wait()
    if mine in (0, size - 1):
        groups["ends"] = _group("ends", (stages[0], stages[-1]), rank, timeout_seconds)
    else:
        _partnerless(rank)
    return groups
