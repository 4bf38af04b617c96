"""All filters on real abstracts: cleaning, boilerplate, folding, splitting, every rule and the language, beside
datatrove's Gopher quality, Gopher repetition and FineWeb filters.

    MATERIA_PEERS=PYTHON pytest bench/test_curation_filters.py -s

The peer's filters stand one behind the other, as in a pipeline: a text that one drops is not shown to the next. Its
language filter is left out, because its model has to be downloaded; ours is in. Neither side's reading is counted.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import orjson

from bench.curation import measure, real_file, row
from data.boilerplate import strip_boilerplate
from data.clean import clean_text
from data.counts import count
from data.documents import Document
from data.files import open_input
from data.filters import Filters
from data.read_pass import BATCH_RECORDS
from data.readers.interface import InputFile
from data.readers.medline import read
from data.words import Words, fold

BAR = 10.0
ABSTRACTS = 1000
"""Enough for stable figures: the peer takes some ten seconds a round."""
PEER = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
filters = [GopherQualityFilter(), GopherRepetitionFilter(), FineWebQualityFilter()]
with open(sys.argv[1], encoding="utf-8") as lines:
    documents = [Document(text=json.loads(line), id=str(n)) for n, line in enumerate(lines)]
for one in filters:
    one.filter(documents[0])
dropped = dict.fromkeys((one.name for one in filters), 0)
start = time.process_time()
for document in documents:
    for one in filters:
        if one.filter(document) is not True:
            dropped[one.name] += 1
            break
seconds = time.process_time() - start
print(json.dumps(dict(cpu_seconds=seconds, documents=len(documents), dropped=dropped)))
"""


def read_documents(path: Path) -> list[Document]:
    """The abstracts of a MEDLINE file, as the reader gives them."""
    with open_input(path, path.name) as stream:
        return [item for item in read(InputFile(stream, path.name, "medline")) if isinstance(item, Document)]


def dropped(documents: list[Document], filters: Filters) -> Counter[str]:
    """How many of the documents each rule drops; all the work on a text is done here."""
    rules: Counter[str] = Counter()
    for start in range(0, len(documents), BATCH_RECORDS):
        batch = documents[start : start + BATCH_RECORDS]
        texts = [strip_boilerplate(clean_text(document.text), Counter()) for document in batch]
        for document, counts in zip(batch, count(texts, Words(list(map(fold, texts)))), strict=True):
            rule = filters.failed(replace(document, text=counts.text), counts)
            if rule:
                rules[rule] += 1
    return rules


def test_filters(report, tmp_path):
    documents = read_documents(real_file("medline", "pubmed21n1298.first4000.xml.gz"))[:ABSTRACTS]
    texts = tmp_path / "texts.jsonl"
    texts.write_bytes(b"\n".join(orjson.dumps(document.text) for document in documents))
    filters = Filters.build()
    ours = dropped(documents, filters)
    figures = measure(lambda: dropped(documents, filters), PEER, [str(texts)])
    print("\n" + row("filters, beside datatrove's", figures, BAR))
    print(f"ours: {len(documents) / figures['ours_seconds']:.0f} abstracts/s, dropped {dict(ours)}")
    if figures["peer"]:
        count = figures["peer"]["documents"]
        print(f"peer: {count / figures['peer_seconds']:.0f} abstracts/s, dropped {figures['peer']['dropped']}")
        assert count == len(documents)
    report({"bar": BAR, "documents": len(documents), "dropped": dict(ours), **figures})
