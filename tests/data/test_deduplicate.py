"""Exact duplicates against brute force, whatever the partitions."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import deduplicate
from data.deduplicate import Action
from data.documents import Document
from data.words import fold


def test_false_identifiers_are_left_out_and_counted():
    false = document("a", pmid="0", pmcid="12", doi="n/a")
    real = document("a", pmid="12", pmcid="PMC12", doi="https://doi.org/10.1/A")
    notes = Counter()
    for item in (false, real):
        deduplicate.drop_false_identifiers(item, notes)
    assert (false.pmid, false.pmcid, false.doi) == (None, None, None)
    assert (real.pmid, real.pmcid, real.doi) == ("12", "PMC12", "https://doi.org/10.1/A")
    assert notes == {f"{name} of no real form left out": 1 for name in ("pmid", "pmcid", "doi")}


def document(text="t", **fields):
    return Document(id="x", source="s", title=None, text=text, **fields)


class Verdict(NamedTuple):
    """What a document that was read and not kept says of others with its identifiers."""

    action: Action
    document: Document


def drops(units, sources, full_text, partitions=1):
    """`{(unit, position): (rule, (better unit, better position))}`; a unit is a list of documents and verdicts."""
    arrays = []
    for items in units:
        records = deduplicate.Identities(seed=0)
        position = 0
        for item in items:
            if isinstance(item, Verdict):
                records.judge(item.document, item.action, position)
            else:
                text = deduplicate.normalised(fold(item.text))
                records.add(item, text, position, abstract_only=not full_text[len(arrays)])
                position += 1
        arrays.append(records.array())
    found = []
    for partition in range(partitions):
        slices = [deduplicate.key_slice(array, "high", partition, partitions) for array in arrays]
        found.append(deduplicate.worse_documents(slices, sources))
    return {
        (int(row["worse_unit"]), int(row["worse_position"])): (
            deduplicate.RULES[row["rule"]],
            (int(row["better_unit"]), int(row["better_position"])),
        )
        for row in deduplicate.first_drops(np.concatenate(found))
    }


@pytest.mark.parametrize(
    ("first", "second", "rule"),
    [
        (document("The  dose\nis 5 mg"), document("the dose is 5 MG"), "same-text"),
        (document("a", pmid="1"), document("b", pmid="1"), "same-pmid"),
        (document("a", pmcid="PMC1"), document("b", pmcid="PMC1"), "same-pmcid"),
        (document("a", doi="10.1/AB"), document("b", doi="https://doi.org/10.1/ab"), "same-doi"),
        (document("a", pmid="1", doi="10.1/a"), document("b", pmid="2", doi="10.1/a"), None),
        (document("a", pmid="1", doi="10.1/a"), document("b", doi="10.1/a"), "same-doi"),
        (document("p < 0.05"), document("p > 0.05"), None),
        (document("5 mg"), document("-5 mg"), None),
        (document("a", pmid="1"), document("b", pmcid="1"), None),
    ],
)
def test_what_is_a_duplicate(first, second, rule):
    found = drops([[first, second]], [0], [False])
    assert found == ({(0, 0): (rule, (0, 1))} if rule else {})


def test_the_order_of_better():
    def pair(*versions):
        return [[document("a", pmid="1", version=versions[0])], [document("b", pmid="1", version=versions[1])]]

    def same_file(*versions):
        return [[document(f"{number}", pmid="1", version=version) for number, version in enumerate(versions)]]

    assert list(drops(pair(1, 1), [0, 1], [False, True])) == [(0, 0)]  # full text before abstract
    assert list(drops(pair(1, 2), [0, 1], [False, False])) == [(1, 0)]  # then the source named first
    assert list(drops(pair(2, 1), [0, 0], [False, False])) == [(0, 0)]  # then the later file
    assert list(drops(same_file(1, 3, 2), [0], [False])) == [(0, 0), (0, 2)]  # then the version
    assert list(drops(same_file(1, 1), [0], [False])) == [(0, 0)]  # then the later place
    assert list(drops(pair(1, 9), [0, 1], [True, False])) == [(1, 0)]  # full text counts more than a version


@pytest.mark.parametrize("action", [Action.DELETED, Action.REVISED])
def test_a_revision_removes_what_stands_before_it_in_the_same_stream(action):
    verdict = Verdict(action, document(pmid="1"))
    rule = deduplicate.RULES[action - 1]
    units = [[document("a", pmid="1"), verdict, document("b", pmid="1")], [document("c", pmid="1")]]
    found = drops(units, [0, 1], [False, False])
    assert found == {(0, 0): (rule, (0, 1)), (1, 0): ("same-pmid", (0, 1))}
    assert drops([[verdict], [document("a", pmid="1")]], [0, 0], [False, False]) == {}
    assert list(drops([[document("a", pmid="1")], [verdict]], [0, 0], [False, False])) == [(0, 0)]


@pytest.mark.parametrize(
    ("action", "rule"), [(Action.RETRACTED, "retracted-elsewhere"), (Action.BENCHMARK, "benchmark-identity")]
)
def test_a_retraction_and_a_benchmark_reach_every_source_by_every_identifier(action, rule):
    verdict = Verdict(action, document(pmid="1", pmcid="PMC7", doi="10.1/a"))
    papers = [document("a", pmcid="PMC7"), document("b", doi="10.1/A"), document("c", pmid="2", doi="10.1/a")]
    found = drops([papers, [verdict]], [0, 1], [True, False])
    assert found == {(0, 0): (rule, (1, 0)), (0, 1): (rule, (1, 0))}  # the third has a DOI of several articles
    assert {place for place, _ in drops([[verdict], papers], [0, 1], [False, True]).items()} == {(1, 0), (1, 1)}


KEYS = st.sampled_from(["1", "2", "3", None])
DOCUMENTS = st.builds(
    document, text=st.sampled_from("abcdef"), pmid=KEYS, doi=KEYS, version=st.sampled_from([None, 1, 2])
)


@given(
    units=st.lists(st.lists(DOCUMENTS, max_size=5), min_size=1, max_size=4),
    partitions=st.integers(1, 7),
    data=st.data(),
)
def test_dropped_exactly_when_it_is_not_the_best_of_a_key(units, partitions, data):
    sources = sorted(data.draw(st.lists(st.integers(0, 2), min_size=len(units), max_size=len(units))))
    full_text = [source == 1 for source in sources]
    every = [(u, p, item) for u, items in enumerate(units) for p, item in enumerate(items)]

    def rank(unit, position, item):
        return (not full_text[unit], sources[unit], -unit, -(item.version or 0), -position)

    expected = {
        (u, p)
        for u, p, item in every
        for other_u, other_p, other in every
        if (item.text == other.text or (item.pmid and item.pmid == other.pmid))
        and rank(other_u, other_p, other) < rank(u, p, item)
    }
    for doi in "123":
        same = sorted((rank(u, p, item), u, p, item.pmid) for u, p, item in every if item.doi == doi)
        expected |= {(u, p) for _, u, p, pmid in same[1:] if None in (pmid, same[0][3]) or pmid == same[0][3]}
    found = drops(units, sources, full_text, partitions)
    assert set(found) == expected
    assert not every or len(found) < len(every)  # the best of all is never dropped


VERDICTS = st.builds(Verdict, st.sampled_from(list(Action)[1:]), st.builds(document, pmid=KEYS, pmcid=KEYS))


@given(units=st.lists(st.lists(DOCUMENTS | VERDICTS, max_size=6), min_size=1, max_size=4), data=st.data())
def test_verdicts_against_brute_force(units, data):
    sources = sorted(data.draw(st.lists(st.integers(0, 2), min_size=len(units), max_size=len(units))))
    found = drops(units, sources, [False] * len(units), data.draw(st.integers(1, 3)))
    expected = set()
    for unit, items in enumerate(units):
        for place, item in enumerate(items):
            if isinstance(item, Verdict):
                continue
            position = sum(not isinstance(other, Verdict) for other in items[:place])
            for other_unit, others in enumerate(units):
                for other_place, other in enumerate(others):
                    if not isinstance(other, Verdict) or not item.pmid or other.document.pmid != item.pmid:
                        continue
                    earlier = (unit, place) < (other_unit, other_place) and sources[unit] == sources[other_unit]
                    if earlier or other.action in (Action.RETRACTED, Action.BENCHMARK):
                        expected.add((unit, position))
    assert {
        place for place, (rule, _) in found.items() if deduplicate.RULES.index(rule) < deduplicate.VERDICTS
    } == expected


def test_many_verdicts_that_meet_nothing_cost_little():
    """One for each citation without an abstract: their number must not multiply."""
    records = deduplicate.Identities(seed=0)
    for number in range(1, 100_001):
        records.judge_pmid(str(number), Action.REVISED, 0)
    records.add(document("a", pmid="5"), "a", 0, abstract_only=True)
    assert list(deduplicate.worse_documents([records.array()], [0])) == []


def test_partitions_split_the_records():
    records = deduplicate.Identities(seed=1)
    for number in range(500):
        records.add(document(str(number)), str(number), number, abstract_only=True)
    array = records.array()
    parts = [deduplicate.key_slice(array, "high", number, 7) for number in range(7)]
    assert np.array_equal(np.concatenate(parts), array)
    assert all(len(part) > 20 for part in parts)
