"""Exact duplicates against brute force, whatever the partitions."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import deduplicate
from data.documents import Document
from data.readers.interface import Deletion


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


def drops(units, sources, full_text, partitions=1):
    """`{(unit, position): (rule, (better unit, better position))}`; a unit is a list of documents and deletions."""
    arrays = []
    for items in units:
        records = deduplicate.Records(seed=0)
        position = 0
        for item in items:
            if isinstance(item, Deletion):
                records.delete(item, position)
            else:
                records.add(item, position)
                position += 1
        arrays.append(records.array())
    found = {}
    for partition in range(partitions):
        slices = [deduplicate.partition_slice(array, partition, partitions) for array in arrays]
        for pair in deduplicate.worse_documents(slices, sources, full_text):
            worse_unit, worse_position, better_unit, better_position, rule = (int(value) for value in pair.tolist())
            value = (deduplicate.RULES[rule], (better_unit, better_position))
            found[worse_unit, worse_position] = min(value, found.get((worse_unit, worse_position), value))
    return found


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

    assert list(drops(pair(1, 1), [0, 1], [False, True])) == [(0, 0)]  # full text before abstract
    assert list(drops(pair(2, 1), [0, 0], [False, False])) == [(1, 0)]  # then the version
    assert list(drops(pair(1, 1), [0, 1], [False, False])) == [(1, 0)]  # then the source named first
    assert list(drops(pair(1, 1), [0, 0], [False, False])) == [(0, 0)]  # then the later file
    assert list(drops(pair(1, 9), [0, 1], [True, False])) == [(1, 0)]  # full text counts more than a version


def test_deletions_remove_what_stands_before_them_in_the_same_source():
    units = [[document("a", pmid="1"), Deletion("1"), document("b", pmid="1")], [document("c", pmid="1")]]
    found = drops(units, [0, 1], [False, False])
    assert found == {(0, 0): ("deleted-by-publisher", (0, 1)), (1, 0): ("same-pmid", (0, 1))}
    assert drops([[Deletion("1")], [document("a", pmid="1")]], [0, 0], [False, False]) == {}
    assert list(drops([[document("a", pmid="1")], [Deletion("1")]], [0, 0], [False, False])) == [(0, 0)]


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
        return (not full_text[unit], -(item.version or 0), sources[unit], -unit, -position)

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


def test_partitions_split_the_records_and_come_from_the_input_size():
    records = deduplicate.Records(seed=1)
    for number in range(500):
        records.add(document(str(number)), number)
    array = records.array()
    parts = [deduplicate.partition_slice(array, number, 7) for number in range(7)]
    assert np.array_equal(np.concatenate(parts), array)
    assert all(len(part) > 20 for part in parts)
    assert [deduplicate.partition_count(size) for size in (0, 1, 1 << 30, (1 << 30) + 1)] == [1, 1, 1, 2]
