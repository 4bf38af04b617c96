"""Fidelity on real articles, and that the measure sees what is lost, repeated or out of place."""

import pytest
from lxml import etree

from bench.fidelity import Fidelity, load, longest_common_subsequence, measure, words
from data.clean import clean_text
from data.readers.interface import InputFile
from data.readers.jats import read

SENTENCES = [
    "Aspirin was given to thirty patients with fever for five days in a row.",
    "Nobody in the second group had more than two units of blood before surgery.",
    "The dose of insulin was raised by ten percent when glucose stayed above limits.",
]


def article(*blocks):
    return etree.fromstring(f"<article><body>{''.join(f'<p>{block}</p>' for block in blocks)}</body></article>")


def recall(tree, output):
    return measure(tree, output).recall


def test_real_articles_keep_their_text(assets):
    folders = sorted(folder for folder in (assets / "jats").iterdir() if folder.is_dir())
    every = {"craft_pmc_oa": 4}  # 97 articles of the same publishers; bench/test_curation_jats.py takes all
    paths = [path for folder in folders for path in sorted(folder.glob("*.nxml"))[:: every.get(folder.name, 1)]]
    assert len(paths) == 36
    total, low = Fidelity(), []
    for path in paths:
        with path.open("rb") as stream:
            (document,) = read(InputFile(stream, path.name, "jats"))
        one = measure(load(path), clean_text(document.text))
        low += [path.name] if one.recall < 0.98 else []
        total += one
    assert total.blocks > 150_000
    assert total.recall >= 0.995
    assert total.duplication <= 0.001
    assert low == []


def test_a_perfect_text():
    assert measure(article(*SENTENCES), "\n\n".join(SENTENCES)) == Fidelity(42, 42, 42, 0)


def test_what_is_lost_counts_even_where_another_block_says_the_same():
    tree = article(SENTENCES[0], SENTENCES[1], SENTENCES[0])
    assert recall(tree, f"{SENTENCES[0]}\n{SENTENCES[1]}") == pytest.approx(28 / 42)
    assert recall(tree, SENTENCES[1]) == pytest.approx(14 / 42)


def test_what_is_repeated():
    tree = article(*SENTENCES)
    twice = measure(tree, "\n".join([*SENTENCES, SENTENCES[1]]))
    assert (twice.recall, twice.repeated) == (1.0, 7)
    assert measure(article(*SENTENCES, SENTENCES[1]), "\n".join([*SENTENCES, SENTENCES[1]])).repeated == 0


def test_a_word_in_between_costs_nothing_and_words_out_of_order_count_once():
    tree = article(SENTENCES[0])
    assert recall(tree, SENTENCES[0].replace("given", "given (Figure 2)")) == 1.0
    assert recall(tree, "for five days in a row. Aspirin was given to thirty patients with fever") == pytest.approx(
        8 / 14
    )


@pytest.mark.parametrize(
    ("block", "output"),
    [
        ("10<sup>9</sup>/L and CO<sub>2</sub>", "10⁹/L and CO2"),
        ("70 kg<sup>0.75</sup>", "70 kg^0.75"),
        ('seen [<xref>4</xref>,<xref>5</xref>] often', "seen [4,5] often"),
        ('seen<sup><xref>4</xref></sup> often', "seen [4] often"),
        ('<xref ref-type="fig">Figure 1</xref> shows', "Figure 1 shows"),
        ("a <inline-formula><tex-math>x^2</tex-math></inline-formula> b", "a $x^2$ b"),
        ("median 5 [3–7] <italic>vs</italic> 4", "median 5 [3–7] vs 4"),
        ("Größe <bold>ﬁve</bold> µg", "GRÖSSE five μg"),
    ],
)  # fmt: skip
def test_both_sides_are_read_alike(block, output):
    assert recall(article(block), output) == 1.0


def test_parts_that_count():
    tree = etree.fromstring(
        """<article><front><article-meta><title-group><article-title>no block</article-title></title-group>
        <abstract abstract-type="lay"><p>one</p></abstract></article-meta></front>
        <body><sec><label>1</label><title>two</title><p>three<list><list-item><p>four</p></list-item></list>five</p>
        <supplementary-material><caption><p>no</p></caption></supplementary-material></sec></body>
        <back><ack><p>no</p></ack><app-group><app><title>six</title></app></app-group></back>
        <floats-group><table-wrap><caption><p>seven</p></caption><table><tr><td>eight</td></tr></table></table-wrap></floats-group>
        <sub-article><body><p>no</p></body></sub-article></article>"""
    )
    assert measure(tree, "one two three four five six seven eight") == Fidelity(8, 8, 8, 0)


def test_longest_common_subsequence():
    assert longest_common_subsequence(list("abcbdab"), list("bdcaba")) == 4
    assert longest_common_subsequence(list("abc"), []) == 0
    assert words("In [3, 4–6] 10⁹") == ["in", "109"]
