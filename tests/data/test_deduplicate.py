"""Exact duplicates against brute force, whatever the partitions."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import deduplicate, identities
from data.deduplicate import Parts
from data.documents import Document
from data.identities import Action
from data.words import fold


def test_false_identifiers_are_left_out_and_counted():
    false = document("a", pmid="0", pmcid="12", doi="n/a")
    real = document("a", pmid="12", pmcid="PMC12", doi="https://doi.org/10.1/A")
    notes = Counter()
    for item in (false, real):
        identities.drop_false_identifiers(item, notes)
    assert (false.pmid, false.pmcid, false.doi) == (None, None, None)
    assert (real.pmid, real.pmcid, real.doi) == ("12", "PMC12", "https://doi.org/10.1/A")
    assert notes == {f"{name} of no real form left out": 1 for name in ("pmid", "pmcid", "doi")}


def document(text="t", **fields):
    return Document(id="x", source="s", title=None, text=text, **fields)


class Verdict(NamedTuple):
    """What a document that was read and not kept says of others with its identifiers."""

    action: Action
    document: Document


def drops(units, sources, full_text, partitions=1, ranks=None, revises=True):
    """`{(part, position): (rule, (better part, position))}`; a part is a list of documents and verdicts."""
    arrays = []
    for items in units:
        records = identities.Identities(seed=0)
        position = 0
        for item in items:
            if isinstance(item, Verdict):
                records.judge(item.document, item.action, position)
            else:
                text = identities.normalised(fold(item.text))
                records.add(item, text, position, abstract_only=not full_text[len(arrays)])
                position += 1
        arrays.append(records.array())
    count = len(units)
    parts = Parts(
        np.array(sources, np.int64),
        np.array(ranks or range(count), np.int64),
        np.array([revises] * count if isinstance(revises, bool) else revises, np.int64),
    )

    def slices(number):
        return [deduplicate.key_slice(array, "high", number, partitions) for array in arrays]

    gone = np.concatenate([deduplicate.superseded(slices(number), parts) for number in range(partitions)])
    without = np.unique(deduplicate.places(gone["worse_part"], gone["worse_position"]))
    found = [gone, *(deduplicate.identical(slices(number), parts, without) for number in range(partitions))]
    return {
        (int(row["worse_part"]), int(row["worse_position"])): (
            identities.RULES[row["rule"]],
            (int(row["better_part"]), int(row["better_position"])),
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
    rule = identities.RULES[action - 1]
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
    papers = [document("a", pmcid="PMC7"), document("b", doi="10.1/A")]
    found = drops([papers, [verdict]], [0, 1], [True, False])
    assert found == {(0, 0): (rule, (1, 0)), (0, 1): (rule, (1, 0))}
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
        if len({pmid for *_, pmid in same if pmid}) < 2:  # else a DOI of several articles
            expected |= {(u, p) for _, u, p, _ in same[1:]}
    found = drops(units, sources, full_text, partitions, revises=False)
    assert set(found) == expected
    assert not every or len(found) < len(every)  # the best of all is never dropped


JUDGED = st.builds(document, pmid=KEYS, pmcid=KEYS, version=st.sampled_from([None, 1, 2]))
VERDICTS = st.builds(Verdict, st.sampled_from(list(Action)[1:]), JUDGED)


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
                    same_stream = sources[unit] == sources[other_unit]
                    says = other.action == Action.DELETED or (item.version or 0) <= (other.document.version or 0)
                    earlier = unit < other_unit or (unit == other_unit and place < other_place and says)
                    elsewhere = other.action == Action.RETRACTED and not same_stream
                    if other.action == Action.BENCHMARK or elsewhere or (same_stream and earlier):
                        expected.add((unit, position))
    assert {
        place for place, (rule, _) in found.items() if identities.RULES.index(rule) < identities.VERDICTS
    } == expected


def test_many_verdicts_that_meet_nothing_cost_little():
    """One for each citation without an abstract: their number must not multiply."""
    verdicts = [Verdict(Action.REVISED, document(pmid=str(number))) for number in range(1, 50_001)]
    assert drops([[*verdicts, document("a", pmid="5")]], [0], [False]) == {}


def test_what_was_taken_back_drops_no_copy_of_itself():
    """The copy is all that is left of the text."""
    first, second = document("same", pmid="1"), document("same", pmid="2")
    assert drops([[first, second, Verdict(Action.DELETED, document(pmid="2"))]], [0], [False]) == {
        (0, 1): ("deleted-by-publisher", (0, 2))
    }
    corrected = document("other", pmid="2")
    assert drops([[first, second], [corrected]], [0, 0], [False] * 2) == {(0, 1): ("same-pmid", (1, 0))}
    retracted = Verdict(Action.RETRACTED, document(pmid="1"))
    assert list(drops([[first], [retracted, second]], [0, 0], [False] * 2)) == [(0, 0)]


def test_files_are_in_the_order_of_their_release_whatever_source_they_are_in():
    units = [[document("new", pmid="1")], [document("old", pmid="1"), document("b", pmid="2")]]
    assert drops(units, [0, 0], [False] * 2, ranks=[1, 0]) == {(1, 0): ("same-pmid", (0, 0))}
    units[0].insert(0, Verdict(Action.DELETED, document(pmid="2")))
    assert set(drops(units, [0, 0], [False] * 2, ranks=[1, 0])) == {(1, 0), (1, 1)}


def test_a_verdict_on_one_version_says_nothing_of_a_higher_one_in_its_file():
    units = [[document("b", pmid="1", version=2), Verdict(Action.REVISED, document(pmid="1", version=1))]]
    assert drops(units, [0], [False]) == {}
    parts = [units[0][:1], units[0][1:]]  # of one file
    assert drops(parts, [0, 0], [False] * 2, ranks=[3, 3]) == {}
    assert list(drops(parts, [0, 0], [False] * 2, ranks=[3, 4])) == [(0, 0)]  # a later file: whatever the version
    both = [[document("b", pmid="1", version=2)], [document("a", pmid="1", version=1)]]
    assert list(drops(both, [0, 0], [False] * 2, ranks=[3, 3])) == [(1, 0)]


def test_a_retraction_that_was_withdrawn_leaves_the_later_record():
    verdict = Verdict(Action.RETRACTED, document(pmid="1", pmcid="PMC1"))
    units = [[document("a", pmid="1")], [verdict], [document("b", pmid="1")], [document("paper", pmcid="PMC1")]]
    assert set(drops(units, [0, 0, 0, 1], [False] * 3 + [True], revises=[True] * 3 + [False])) == {(0, 0), (3, 0)}


def test_a_doi_of_several_articles_says_nothing_of_a_record_without_pmid():
    abstracts = [document(f"{number}", pmid=f"{number}", doi="10.1/a") for number in range(1, 6)]
    paper = document("paper", doi="10.1/a")
    assert drops([abstracts, [paper]], [0, 1], [False, True]) == {}
    verdict = Verdict(Action.RETRACTED, document(doi="10.1/a"))
    assert drops([abstracts, [verdict]], [0, 1], [False, True]) == {}


def test_partitions_split_the_records():
    records = identities.Identities(seed=1)
    for number in range(500):
        records.add(document(str(number)), b"%d" % number, number, abstract_only=True)
    array = records.array()
    parts = [deduplicate.key_slice(array, "high", number, 7) for number in range(7)]
    assert np.array_equal(np.concatenate(parts), array)
    assert all(len(part) > 20 for part in parts)
