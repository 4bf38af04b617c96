"""Which documents were dropped for a benchmark, and what the rest still has in common with its questions."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data.decontaminate import RULES as QUESTION_RULES
from data.identities import RULES as DUPLICATE_RULES
from data.overlap import Overlap
from data.scratch import Ids
from data.shared import Shared
from data.summary import Part, Summary

IDENTITY_RULE = "benchmark-identity"
"""A document without the PMID but with the PMCID or DOI of an article that a benchmark was made of."""
RULES = (*QUESTION_RULES, IDENTITY_RULE)


class Contamination:
    """`rows`: a `{source, id, rule, benchmark, question, share}` for each document dropped, in input order.

    `share` is that of the question's words found in order, 1 for an identity. A document dropped by an identity in
    another unit than the article's own may have `question` (and `benchmark`) null: that several articles of that unit
    could have given it.
    `benchmarks`: by name the counts of `Questions.summary`, `documents_dropped`, `dropped` by rule, and `left`, the
    overlap with what passed the filters (`Questions.left`).
    """

    def __init__(
        self,
        names: Sequence[str],
        summaries: Sequence[Summary],
        parts: Sequence[Part],
        drops: np.ndarray,
        shared: Shared,
    ):
        """`names` of the units' sources; `drops` are the DROP rows of the run, by part."""
        self.rows = list(_rows(names, summaries, parts, drops, shared))
        overlap = shared.questions.new_overlap()
        for summary in summaries:
            overlap.merge(Overlap.from_json(summary.overlap))
        left = shared.questions.left(overlap)
        self.benchmarks = {}
        for name, counts in sorted(shared.questions.summary().items()):
            rules = [row["rule"] for row in self.rows if name in _benchmarks_of(row, shared)]
            self.benchmarks[name] = {
                **counts,
                "documents_dropped": len(rules),
                "dropped": {rule: rules.count(rule) for rule in RULES if rule in rules},
                "left": {key: value for key, value in left[name].items() if key != "checked"},
            }

    def lines(self) -> str:
        """The rows as JSON lines."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


def _rows(
    names: Sequence[str], summaries: Sequence[Summary], parts: Sequence[Part], drops: np.ndarray, shared: Shared
) -> Iterator[dict[str, str | float | None]]:
    reader = functools.lru_cache(64)(lambda number: Ids(shared.units, parts[number].key))
    identities: dict[int, list[np.void]] = {}
    for drop in drops[drops["rule"] == DUPLICATE_RULES.index(IDENTITY_RULE)]:
        identities.setdefault(parts[int(drop["worse_part"])].unit, []).append(drop)
    for unit, (name, summary) in enumerate(zip(names, summaries, strict=True)):
        for identity, rule, benchmark, question, share in summary.contaminated:
            yield _row(name, identity, rule, benchmark, question, round(share, 4))
        for drop in identities.get(unit, ()):
            origin = summaries[parts[int(drop["better_part"])].unit]
            articles = [match[2:4] for match in origin.contaminated if match[1] == "benchmark-pmid"]
            benchmark, question = (_only(values) for values in zip(*(articles or [(None, None)]), strict=True))
            identity = reader(int(drop["worse_part"]))[int(drop["worse_position"])]
            yield _row(name, identity, IDENTITY_RULE, benchmark, question, 1.0)


def _benchmarks_of(row: Mapping, shared: Shared) -> Sequence[str]:
    """The benchmarks that have the question of a row: some share theirs (medqa and medqa4)."""
    return shared.questions.shared_by.get(row["question"], (row["benchmark"],))


def _row(source: str, identity: str, rule: str, benchmark: str | None, question: str | None, share: float) -> dict:
    return {
        "source": source,
        "id": identity,
        "rule": rule,
        "benchmark": benchmark,
        "question": question,
        "share": share,
    }


def _only(values: Sequence[str]) -> str | None:
    return values[0] if len(set(values)) == 1 else None
