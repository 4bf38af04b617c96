"""Documents to token shards beside SentencePiece alone on the same texts in memory.

    MATERIA_PEERS=PYTHON pytest bench/test_curation_tokenize.py -s

Ours is the whole of `tokenize`: decompressing and reading the documents, their tokens, the check of a sample by both
tokenizers, sorting, two passes over the disk, hashing every file, the tokenizer as transformers reads it. SentencePiece
has its texts in a list and throws its ids away. The bar is of the whole chain from XML; tokenising may take no more
than a part of it.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from bench.curation import measure, real_file, row
from bench.medline_copies import write_copies
from data.documents import Document, read_documents, write_documents
from data.files import open_input
from data.readers.interface import InputFile
from data.readers.medline import read
from data.shards import Shards
from data.tokenize import tokenize

ROUNDS = int(os.environ.get("MATERIA_ROUNDS", "3"))
"""How often each side runs, in turns; the best counts."""
PEER = """
import json, sys, time
import sentencepiece
texts = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
model = sentencepiece.SentencePieceProcessor(model_file=sys.argv[1])
start = time.process_time()
tokens = sum(len(ids) + 2 for ids in model.encode(texts, num_threads=1))
print(json.dumps(dict(cpu_seconds=time.process_time() - start, documents=len(texts), tokens=tokens)))
"""


@pytest.fixture(scope="module", params=[1, 6], ids=["the real file", "six files made of it"])
def corpus(request, tmp_path_factory) -> Path:
    """Curated documents of the real MEDLINE file, or of six like it with other words; `texts.jsonl` beside them."""
    folder = tmp_path_factory.mktemp("texts")
    source = real_file("medline", "pubmed21n1298.first4000.xml.gz")
    paths = [source] if request.param == 1 else write_copies(source, folder / "xml", request.param, 4000)
    out = folder / "corpus" / "medline"
    out.mkdir(parents=True)
    texts = []
    for number, path in enumerate(paths):
        with open_input(path, path.name) as stream:
            found = [item for item in read(InputFile(stream, path.name, "medline")) if isinstance(item, Document)]
        write_documents(out / f"train-{number:05d}.jsonl.zst", found)
        texts += [document["text"] for document in read_documents(out / f"train-{number:05d}.jsonl.zst")]
    lines = (json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "corpus"


@pytest.mark.parametrize(("fast", "bar"), [("on", 0.6), ("off", 0.35)])
def test_tokenising_beside_sentencepiece_alone(corpus, fast, bar, tmp_path, report):
    model = real_file("model", "llama2_tokenizer.model")
    out = tmp_path / "shards"

    def ours() -> None:
        shutil.rmtree(out, ignore_errors=True)
        tokenize(corpus, model, out, fast=fast)

    figures = measure(ours, PEER, [str(model), str(corpus.parent / "texts.jsonl")], ROUNDS)
    counts = Shards(out).manifest["sources"]["medline"]["train"]
    name = "gigatoken" if fast == "on" else "SentencePiece"
    print("\n" + row(f"{counts['documents']:,} abstracts to shards with {name}, SentencePiece alone", figures, bar))
    seconds = figures["ours_seconds"]
    print(f"{seconds / counts['documents'] * 1e6:.0f} us a document, {counts['tokens'] / seconds / 1e6:.2f} M tokens/s")
    report({"bar": bar, "documents": counts["documents"], "tokens": counts["tokens"], **figures})
    if figures["peer"]:
        assert figures["peer"]["tokens"] == counts["tokens"]
