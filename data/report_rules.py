"""Every rule by which a record is dropped, with its threshold and reason, in the words of the report."""

from collections.abc import Mapping
from dataclasses import dataclass

from data.decontaminate import SHORTEST_QUESTION, TENTHS, WHOLE_BELOW
from data.filters import RULES as FILTER_RULES
from data.shared import Shared

READING = {
    "bad-record": "cannot be read as a record of its kind",
    "book-record": "a citation of a book or a book's chapter, not of an article",
    "line-too-long": "one line longer than any record, which would not fit into memory",
    "no-abstract": "a citation without an abstract in a language asked for",
    "no-text": "a record with neither an abstract nor a text",
    "no-text-in-pdf": "the pages are pictures of text",
    "not-an-article": "another kind of page or of XML than an article",
    "redirect": "a page that only names another",
    "unsupported-format": "a format that cannot be read",
}
"""What readers drop for having no text; none of them has a threshold."""
DUPLICATES = {
    "deleted-by-publisher": "a later file of the release takes the citation back",
    "revised-then-dropped": "a later file revises the citation to one that is dropped",
    "retracted-elsewhere": "a retraction notice, or another copy of the article, says that it was retracted",
    "benchmark-identity": "the PMCID or DOI of an article that a benchmark was made of",
    "same-pmid": "a better copy has the same PMID",
    "same-pmcid": "a better copy has the same PMCID",
    "same-doi": "a better copy has the same DOI, and no other PMID",
    "same-text": "a better copy has the same text, but for case, spaces and Unicode forms",
    "near-duplicate": "a better copy has so many of the two texts' phrases of five words in common",
}
"""What the duplicate search finds, in its order. Better is: full text before abstract, then the source named earlier,
then the later record; of near-duplicates the longer one after the full text and the higher version."""


@dataclass(frozen=True)
class RuleLine:
    """A rule of the report: the step that applies it, its threshold (None where it has none) with the unit, why, and
    how many records it dropped."""

    step: str
    rule: str
    threshold: float | None
    unit: str
    reason: str
    dropped: int


def rule_lines(shared: Shared, dropped: Mapping[str, int]) -> list[RuleLine]:
    """The rules that were applied, in the order of the steps, with their drops; of the reading rules those that
    dropped something."""
    lines = [("reading", name, None, "", READING.get(name, "")) for name in _of_readers(dropped)]
    limits = dict(shared.filters.limits)
    wanted = {"language": " ".join(shared.filters.languages), "license": " ".join(shared.filters.licences)}
    for rule in FILTER_RULES:
        if rule.name in limits:
            limit, unit = (limits[rule.name], rule.unit) if rule.unit else (None, wanted.get(rule.name, ""))
            lines.append(("filters", rule.name, limit, unit, rule.reason))
    if shared.questions.pmids:
        lines.append(("benchmarks", "benchmark-pmid", None, "", "the abstract that a question was made from"))
    if shared.questions.checked:
        unit = f"% of a question's words in order, at least; all {SHORTEST_QUESTION} to {WHOLE_BELOW - 1} in one piece"
        lines.append(("benchmarks", "benchmark-question", 10 * TENTHS, unit, "a question of a benchmark stands in it"))
    for name, reason in DUPLICATES.items():
        if name == "near-duplicate":
            limit, unit, applied = shared.near_duplicates, "Jaccard similarity, at least", shared.near_duplicates > 0
        else:
            limit, unit, applied = None, "", name != "benchmark-identity" or bool(shared.questions.pmids)
        if applied:
            lines.append(("duplicates", name, limit, unit, reason))
    return [RuleLine(*line, dropped.get(line[1], 0)) for line in lines]


def _of_readers(dropped: Mapping[str, int]) -> list[str]:
    others = {"benchmark-pmid", "benchmark-question", *DUPLICATES, *(rule.name for rule in FILTER_RULES)}
    return sorted(set(dropped) - others)
