"""The search for near-duplicates: MinHash beside datasketch's, how many pairs are compared, and how many planted copies
are found.

    MATERIA_PEERS=PYTHON pytest bench/test_curation_duplicates.py -s

For MinHash both sides get the words of real abstracts and end with the keys of their bands: ours hashes words, then
phrases of five, of a batch of texts at once as the pass does, and has 25 bands of 5; the peer hashes phrases of five as
it does by default, with as many permutations and with datatrove's 14 bands of 8. The other figures come from `python -m
data curate` as a user runs it.
"""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.curation import measure, real_file, row
from bench.medline_copies import write_copies
from data.boilerplate import strip_boilerplate
from data.clean import clean_text
from data.documents import Document, read_documents
from data.files import open_input
from data.minhash import Bands
from data.read_pass import BATCH_RECORDS
from data.readers.interface import InputFile
from data.readers.medline import read
from data.words import PHRASE, Words, fold, split_words
from tests.data.test_near_duplicates import variants

REPOSITORY = Path(__file__).resolve().parents[1]
MINHASH_BAR = 3.0
PAIRS_BAR, RECALL_BAR = 5.0, 0.97
FILES, RECORDS = 9, 4000
"""About 30,000 documents: a sixth of the records has no abstract."""
SIMILARITY = 0.7
PEER = """
import json, sys, time
from datasketch import MinHash
bands, rows = int(sys.argv[2]), int(sys.argv[3])
with open(sys.argv[1], encoding="utf-8") as lines:
    documents = [json.loads(line) for line in lines]
def phrases(words):
    found = map(" ".join, zip(*(words[n:] for n in range(5)))) if len(words) >= 5 else [" ".join(words)]
    return [phrase.encode() for phrase in found]
next(MinHash.generator([[b"warm"]], num_perm=bands * rows))
start = time.process_time()
keys = 0
for minhash in MinHash.generator(map(phrases, documents), num_perm=bands * rows):
    values = minhash.hashvalues
    keys += len([values[first : first + rows].tobytes() for first in range(0, bands * rows, rows)])
seconds = time.process_time() - start
print(json.dumps(dict(cpu_seconds=seconds, documents=len(documents), keys=keys)))
"""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real abstracts, cleaned as curation does before it compares them."""
    path = real_file("medline", "pubmed21n1298.first4000.xml.gz")
    with open_input(path, path.name) as stream:
        found = [item.text for item in read(InputFile(stream, path.name, "medline")) if isinstance(item, Document)]
    return [strip_boilerplate(clean_text(text), Counter()) for text in found]


def band_keys(documents: list[list[str]]) -> int:
    """How many band keys our side makes of the words of documents."""
    bands = Bands(seed=0)
    for start in range(0, len(documents), BATCH_RECORDS):
        words = Words([" ".join(document) for document in documents[start : start + BATCH_RECORDS]])
        for number in range(len(words)):
            bands.add(words.phrases(number), start + number)
    return len(bands.array())


def curate(out: Path, *more: object) -> dict:
    """What the report of a curation says."""
    command = [sys.executable, "-m", "data", "curate", "--out", out, "--workers", 2, *more]
    done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout}{done.stderr}")
    return json.loads((out / "report.json").read_text())


def reached(value: bool) -> str:
    """For people."""
    return "reached" if value else "NOT reached"


@pytest.mark.parametrize(("bands", "rows"), [(25, 5), (14, 8)])
def test_minhash(bands, rows, texts, tmp_path, report):
    documents = [split_words(fold(text)) for text in texts]
    given = tmp_path / "words.jsonl"
    given.write_text("".join(json.dumps(words) + "\n" for words in documents), encoding="utf-8")
    figures = measure(lambda: band_keys(documents), PEER, [str(given), str(bands), str(rows)])
    print("\n" + row(f"MinHash, beside datasketch with {bands * rows} permutations", figures, MINHASH_BAR))
    print(f"{len(documents) / figures['ours_seconds']:.0f} abstracts/s")
    report({"bar": MINHASH_BAR, "documents": len(documents), "peer_bands": [bands, rows], **figures})
    assert band_keys(documents) == 25 * len(documents)
    if figures["peer"]:
        assert figures["peer"]["keys"] == bands * len(documents)


def test_pairs_compared(tmp_path, report):
    """Candidates a document among abstracts that are not alike but for their field."""
    write_copies(real_file("medline", "pubmed21n1298.first4000.xml.gz"), tmp_path / "medline", FILES, RECORDS)
    found = curate(tmp_path / "corpus", "--source", f"medline={tmp_path / 'medline'}")
    dropped = found["duplicates"]["dropped"]  # the others went before the search
    documents = found["documents"] + dropped.get("near-duplicate", 0)
    pairs = found["duplicates"]["pairs_compared"]
    bar = reached(pairs <= PAIRS_BAR * documents)
    print(f"\n{pairs:,} pairs compared of {documents:,} documents: {pairs / documents:.2f} a document; bar at most "
          f"{PAIRS_BAR:g} {bar}")  # fmt: skip
    report({"bar": PAIRS_BAR, "documents": documents, "pairs_compared": pairs, "dropped": dropped})
    assert documents > 25_000


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of the phrases themselves, without a hash."""
    words = [split_words(fold(text)) for text in (first, second)]
    one, two = (set(zip(*(of_text[place:] for place in range(PHRASE)), strict=False)) for of_text in words)
    return len(one & two) / len(one | two)


def test_planted_copies_are_found(texts, tmp_path, report):
    source = random.Random(1)
    by_id = {f"original-{number}": text for number, text in enumerate(texts)}
    by_id |= {f"copy-{number}": variants(text.split(), source) for number, text in enumerate(texts)}
    for name in ("original", "copy"):
        lines = [json.dumps({"id": key, "text": text}) for key, text in by_id.items() if key.startswith(name)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    sources = [f"jsonl:{name}={tmp_path / name}.jsonl" for name in ("original", "copy")]
    curate(tmp_path / "corpus", "--source", *sources, "--profile", "none", "--near-duplicates", SIMILARITY)
    drops = [
        dropped for line in read_documents(tmp_path / "corpus/duplicates.jsonl.zst") for dropped in line["dropped"]
    ]
    gone = {dropped["id"] for dropped in drops}
    pairs = [(f"original-{number}", f"copy-{number}") for number in range(len(texts))]
    planted = [pair for pair in pairs if SIMILARITY <= similarity(*map(by_id.get, pair)) < 1]
    recall = sum(not gone.isdisjoint(pair) for pair in planted) / len(planted)
    near = [dropped for dropped in drops if dropped["rule"] == "near-duplicate"]
    false = [drop for drop in near if similarity(by_id[drop["id"]], by_id[drop["better"]]) < SIMILARITY]
    bar = f"bar {RECALL_BAR} and 0 {reached(recall >= RECALL_BAR and not false)}"
    print(f"\n{recall:.4f} of {len(planted):,} planted pairs found that are alike by {SIMILARITY} and not the same; of "
          f"{len(near):,} near-duplicates dropped {len(false)} have no pair that alike; {bar}")  # fmt: skip
    report({"bar": RECALL_BAR, "planted": len(planted), "recall": recall, "dropped": len(near), "false": len(false)})
    assert len(planted) > 1000
    assert not false, false[:3]
