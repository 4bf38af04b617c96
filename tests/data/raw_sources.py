"""Small raw sources of every kind with duplicates within and across, and what a curation made of them."""

import gzip
import html
import json

from PIL import Image

from data.curate import Settings
from data.documents import read_documents

LONG = "Colchicine 500 µg is given twice daily until the pain has gone (p < 0.05). "


def citation(pmid, text, version=1):
    return (
        f'<PubmedArticle><MedlineCitation><PMID Version="{version}">{pmid}</PMID><Article><ArticleTitle>Title {pmid}.</ArticleTitle>'
        f"<Abstract><AbstractText>{html.escape(text)}</AbstractText></Abstract></Article></MedlineCitation></PubmedArticle>"
    )


def medline(*citations):
    return f"<PubmedArticleSet>{''.join(citations)}</PubmedArticleSet>".encode()


def article(pmid, text):
    return (
        f'<article><front><article-meta><article-id pub-id-type="pmid">{pmid}</article-id><title-group><article-title>Paper {pmid}'
        f"</article-title></title-group></article-meta></front><body><p>{html.escape(text)}</p></body></article>"
    ).encode()


def write_raw(folder):
    """Two MEDLINE files, three articles, text and jsonl with duplicates within and across; every source of another kind."""
    for name in ("medline", "jats/sub", "who", "replay"):
        (folder / name).mkdir(parents=True)
    (folder / "medline/pubmed1.xml").write_bytes(medline(*(citation(n, f"{LONG} Number {n}.") for n in range(1, 41))))
    update = [
        citation(1, f"{LONG} Revised."),
        citation(2, f"{LONG} Second version.", 2),
        citation(2, f"{LONG} Third place."),
    ]
    update.append("<DeleteCitation><PMID>3</PMID></DeleteCitation>")
    (folder / "medline/pubmed2.xml.gz").write_bytes(gzip.compress(medline(*update), mtime=0))
    (folder / "medline/README.txt").write_text("not data")
    for pmid in (4, 100, 101):
        (folder / f"jats/sub/{pmid}.nxml").write_bytes(article(pmid, LONG * 3 + str(pmid)))
    (folder / "jats/notes.csv").write_text("a,b")
    (folder / "who/gout.html").write_text(f"<html><body><h1>Gout</h1><p>{LONG * 2}</p></body></html>")
    (folder / "who/copy.html").write_text(f"<html><body><h1>Gout</h1><p>{LONG * 2}</p></body></html>")
    Image.new("RGB", (30, 30)).save(folder / "who/scan.pdf")
    lines = [json.dumps({"text": f"{LONG} Line {n}.", "id": n}) for n in range(200)] + [
        json.dumps({"text": "short"}),
        "no json",
    ]
    (folder / "replay/r.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def settings(raw, out, **changes):
    sources = [
        f"medline={raw}/medline",
        f"jats:papers={raw}/jats",
        f"guidelines={raw}/who",
        f"jsonl:replay={raw}/replay",
    ]
    # the made texts repeat themselves and each other; filters and near-duplicates have tests of their own
    defaults = {"source": tuple(sources), "out": str(out), "profile": "none", "near_duplicates": 0}
    return Settings(**{**defaults, **changes})


def documents(out, name, split="*"):
    return [document for path in sorted((out / name).glob(f"{split}-*.jsonl.zst")) for document in read_documents(path)]


def contents(out):
    """Every compared file: all but `run.log`."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "run.log"
    }


def report(out):
    return json.loads((out / "report.json").read_text())["sources"]
