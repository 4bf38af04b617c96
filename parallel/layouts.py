"""Layouts of a small model, and covering sets of them: what `parallel.check` and tests compare with one process."""

import itertools
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Layout:
    """One way of spreading a small model over ranks."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    schedule: str = "1f1b"
    chunks: int = 1
    micro_batches: int = 3
    """Of each data-parallel rank."""
    recompute: str = "none"
    pieces: int = 1
    kv_heads: int = 8
    """Of 8 heads; fewer than tp are replicated."""
    tied: bool = False
    vocabulary: int = 509
    layers: int = 2

    @property
    def processes(self) -> int:
        return self.tp * self.pp * self.dp

    def __str__(self) -> str:
        return (
            f"tp {self.tp} pp {self.pp} dp {self.dp}, {self.schedule}"
            f"{f' x {self.chunks}' if self.chunks > 1 else ''}, {self.micro_batches} micro-batches, "
            f"recompute {self.recompute}, {self.pieces} piece{'s' * (self.pieces > 1)}, {self.layers} layers, "
            f"{self.kv_heads} kv heads, {'tied, ' * self.tied}vocabulary {self.vocabulary}"
        )


VALUES = {
    "order": (("1f1b", 1), ("interleaved", 2), ("zb", 1), ("zb", 2)),
    "micro_batches": (2, 3, 5),
    "recompute": ("none", "mlp", "attention", "full", "full-1"),
    "pieces": (1, 2),
    "kv_heads": (8, 2, 1),
    "tied": (False, True),
    "vocabulary": (512, 509),
    "uneven": (False, True),
}
"""Values that are combined with every size; `order` is (schedule, chunks), `uneven` one layer more than stages divide.
"""

CANDIDATES = 200


def sizes(processes: int | None = None, most: int = 8) -> list[tuple[int, int, int]]:
    """(tp, pp, dp): exactly `processes` ranks with tp and pp of 1, 2, 4 or 8, or up to `most` with a tp and pp of 1, 2
    or 4 and a dp of 1 or 2.
    """
    if processes is not None:
        splits = itertools.product((1, 2, 4, 8), repeat=2)
        return [(tp, pp, processes // (tp * pp)) for tp, pp in splits if processes % (tp * pp) == 0]
    splits = itertools.product((1, 2, 4), repeat=2)
    return [(tp, pp, dp) for tp, pp in splits for dp in (1, 2) if tp * pp * dp <= most]


def every(processes: int | None = None, most: int = 8) -> list[Layout]:
    """All sizes with all orders, recompute settings and numbers of key/value heads; the other settings are drawn, the
    same in every run.
    """
    random = Random(0)
    full = ("order", "recompute", "kv_heads")
    layouts = []
    for size, *values in itertools.product(sizes(processes, most), *(VALUES[name] for name in full)):
        drawn = {name: random.choice(options) for name, options in VALUES.items()}
        layouts.append(_layout(size, drawn | dict(zip(full, values, strict=True))))
    return layouts


def covering(processes: int | None = None, most: int = 8) -> list[Layout]:
    """Few layouts in which every two values of two settings occur together, where any layout has both.

    Each round takes, of some random layouts that have a pair not covered yet, the one with most such pairs. The random
    numbers are the same in every run.
    """
    random = Random(0)
    choices = sizes(processes, most)
    missing = _pairs_of_values(choices)
    chosen: list[Layout] = []
    while missing:
        wanted = dict(min(missing, key=repr))
        best, covered = None, set()
        for _ in range(CANDIDATES):
            size = random.choice([s for s in choices if all(_size(s).get(k, v) == v for k, v in wanted.items())])
            values = {name: random.choice(options) for name, options in VALUES.items()}
            values |= {name: value for name, value in wanted.items() if name in VALUES}
            pairs = missing & set(itertools.combinations((_size(size) | values).items(), 2))
            if len(pairs) > len(covered):
                best, covered = _layout(size, values), pairs
        missing -= covered
        chosen.append(best)
    return sorted(chosen, key=lambda layout: layout.processes)


def _size(size: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("tp", "pp", "dp"), size, strict=True))


def _pairs_of_values(choices: list[tuple[int, int, int]]) -> set[tuple]:
    """Every two values of two settings that any layout has."""
    pairs: set[tuple] = set()
    for size in choices:
        options = {name: (value,) for name, value in _size(size).items()} | VALUES
        for (a, first), (b, second) in itertools.combinations(options.items(), 2):
            pairs |= {((a, x), (b, y)) for x in first for y in second}
    return pairs


def _layout(size: tuple[int, int, int], values: dict) -> Layout:
    schedule, chunks = values["order"]
    rest = {name: value for name, value in values.items() if name not in ("order", "uneven")}
    layers = max(2, size[1] * chunks) + values["uneven"]
    return Layout(**_size(size), schedule=schedule, chunks=chunks, layers=layers, **rest)
