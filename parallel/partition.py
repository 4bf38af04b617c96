"""Which layers each virtual stage of a pipeline holds."""


def partition(num_layers: int, parts: int, first_extra: float = 0.0, last_extra: float = 0.0) -> list[range]:
    """Contiguous layers for each virtual stage, at least one each, so that the most loaded stage is as light as can be.

    Args:
        num_layers: layers of the model, all of one cost.
        parts: virtual stages: pipeline stages times chunks.
        first_extra: cost of the embedding, in layers; it is the first stage's.
        last_extra: cost of the final norm, head and loss, in layers; it is the last stage's.

    Of the partitions with the lightest heaviest stage, the one with the smallest sum of squared loads; then early
    stages get fewer layers than late ones, because under 1F1B they hold more micro-batches. The search is over the
    first and last counts; the stages between them share the rest evenly, which no other sharing beats.

    Raises ValueError where there are fewer layers than parts.
    """
    assert parts >= 1 and first_extra >= 0 and last_extra >= 0
    if num_layers < parts:
        raise ValueError(
            f"{num_layers} layers cannot be split over {parts} pipeline parts (--pp times --chunks): "
            f"each needs a layer, lower --pp or --chunks"
        )
    if parts == 1:
        return [range(num_layers)]
    most = num_layers - parts + 1
    candidates = (
        _counts(num_layers, parts, first, last)
        for first in range(1, most + 1)
        for last in range(1, most + 1)
        if (first + last == num_layers if parts == 2 else first + last <= num_layers - parts + 2)
    )
    counts = min(candidates, key=lambda counts: _weight(counts, first_extra, last_extra))
    starts = [sum(counts[:part]) for part in range(parts)]
    return [range(start, start + count) for start, count in zip(starts, counts, strict=True)]


def _counts(num_layers: int, parts: int, first: int, last: int) -> list[int]:
    """Layers of each part for given ends; of the parts between them the later ones get the odd layers."""
    between = parts - 2
    rest = num_layers - first - last
    return [first, *((rest + part) // between for part in range(between)), last]


def _weight(counts: list[int], first_extra: float, last_extra: float) -> tuple[float, float, list[int]]:
    loads = [counts[0] + first_extra, *counts[1:-1], counts[-1] + last_extra]
    return max(loads), sum(load * load for load in loads), counts
