"""Reading JATS on real articles: CPU time and fidelity beside pubmed_parser.

    MATERIA_PEERS=PYTHON pytest bench/test_curation_jats.py -s

Both sides start from the files. pubmed_parser gives the metadata with authors and the abstract (`parse_pubmed_xml`),
and the paragraphs of the body (`parse_pubmed_paragraph`), by default those that hold a reference; tables, captions,
titles and lists are not among them, which the figure for paragraphs alone allows for. What is measured is defined in
`bench/fidelity.py`. The fidelity of three sides takes a minute of CPU.
"""

from collections.abc import Callable
from pathlib import Path

from bench.curation import measure, real_file, row
from bench.fidelity import Fidelity, load
from bench.fidelity import measure as fidelity
from data.readers.interface import InputFile
from data.readers.jats import read

BAR = 1.0
LEAST_RECALL = 0.995
MOST_DUPLICATION = 0.001
NAMED_BELOW = 0.98
MOST_NAMED = 10
PEER = """
import json, sys, time
import pubmed_parser
start = time.process_time()
for path in sys.argv[1:]:
    pubmed_parser.parse_pubmed_xml(path)
    pubmed_parser.parse_pubmed_paragraph(path)
print(json.dumps(dict(cpu_seconds=time.process_time() - start)))
"""
PEER_TEXTS = """
import json, sys
import pubmed_parser
texts = {"pubmed_parser": {}, "pubmed_parser, all_paragraph=True": {}}
for path in sys.argv[1:]:
    article = pubmed_parser.parse_pubmed_xml(path)
    for everything, (name, found) in zip((False, True), texts.items()):
        paragraphs = pubmed_parser.parse_pubmed_paragraph(path, all_paragraph=everything)
        pieces = [article["full_title"], article["abstract"], *(paragraph["text"] for paragraph in paragraphs)]
        found[path] = "\\n\\n".join(piece for piece in pieces if piece)
print(json.dumps(dict(cpu_seconds=0.0, texts=texts)))
"""


def text_of(path: Path) -> str:
    """The text of our document of one article."""
    with path.open("rb") as stream:
        (document,) = read(InputFile(stream, path.name, "jats"))
    return document.text


def fidelity_row(name: str, paths: list[Path], text: Callable[[Path], str]) -> tuple[str, dict]:
    """A line for people and the figures of one converter on all articles."""
    everything, prose, below = Fidelity(), Fidelity(), []
    for path in paths:
        article, output = load(path), text(path)
        one = fidelity(article, output)
        everything += one
        prose += fidelity(article, output, ("p",))
        below += [f"{path.name} {one.recall:.2%}"] if one.recall < NAMED_BELOW else []
    named = f"{len(below)} articles under {NAMED_BELOW:.0%}"
    named += f": {', '.join(below)}" if 0 < len(below) <= MOST_NAMED else ""
    line = f"{name}: recall {everything.recall:.2%} (paragraphs alone {prose.recall:.2%}), duplication"
    line += f" {everything.duplication:.3%}; {named}"
    figures = {"recall": everything.recall, "recall_of_paragraphs": prose.recall, "articles_below": len(below)}
    return line, {**figures, "duplication": everything.duplication}


def test_reading_jats(report):
    paths = sorted(real_file("jats").rglob("*.nxml"))
    figures = measure(lambda: [text_of(path) for path in paths], PEER, [str(path) for path in paths])
    print("\n" + row(f"JATS reader on {len(paths)} articles, beside pubmed_parser", figures, BAR))
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    print(f"{len(paths) / figures['ours_seconds']:.0f} articles/s, {megabytes / figures['ours_seconds']:.1f} MB/s")
    report({"bar": BAR, "articles": len(paths), **figures})


def test_fidelity_of_jats(report):
    paths = sorted(real_file("jats").rglob("*.nxml"))
    line, ours = fidelity_row("ours", paths, text_of)
    print(f"\n{len(paths)} articles\n{line}")
    reached = ours["recall"] >= LEAST_RECALL and ours["duplication"] <= MOST_DUPLICATION
    bars = f"recall {LEAST_RECALL:.1%}, duplication {MOST_DUPLICATION:.1%}"
    print(f"bars: {bars}: {'reached' if reached else 'NOT reached'}")
    peer = measure(lambda: None, PEER_TEXTS, [str(path) for path in paths], rounds=1)
    peers = {}
    for name, texts in peer["peer"]["texts"].items() if peer["peer"] else ():
        line, peers[name] = fidelity_row(name, paths, lambda path, texts=texts: texts[str(path)])
        print(line)
    if not peers:
        print(f"pubmed_parser: not measured ({peer['reason']})")
    report({"ours": ours, "peers": peers})
