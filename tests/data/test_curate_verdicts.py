"""Curation: what one source says of an article reaches the others; archives and scratch files that are not whole."""

import gzip
import io
import json
import resource
import subprocess
import sys
import tarfile

import pytest

from data import curate
from data.curate import Settings
from tests.data.raw_sources import LONG, article, citation, contents, documents, medline, report

RETRACTED = "<PublicationTypeList><PublicationType>Retracted Publication</PublicationType></PublicationTypeList>"


def without_abstract(pmid, more="", doi=""):
    """A citation with identifiers and no text."""
    identifier = f'<ELocationID EIdType="doi">{doi}</ELocationID>' if doi else ""
    return (
        f"<PubmedArticle><MedlineCitation><PMID Version='1'>{pmid}</PMID><Article><ArticleTitle>Title.</ArticleTitle>"
        f"{identifier}{more}</Article></MedlineCitation></PubmedArticle>"
    )


def run(out, *sources, **changes):
    settings = {"source": sources, "out": str(out), "profile": "biomedical", "near_duplicates": 0, **changes}
    return curate.run(Settings(**settings))


def paper(path, pmid="", doi=""):
    text = f"{LONG} The paper itself has more to say about colchicine in patients with gout and pericarditis."
    content = article(pmid, text).decode()
    path.write_text(content.replace("<title-group>", f'<article-id pub-id-type="doi">{doi}</article-id><title-group>'))


def test_a_retraction_reaches_a_paper_whatever_rule_drops_its_citation(tmp_path):
    (tmp_path / "m.xml").write_bytes(medline(without_abstract(7, RETRACTED), citation(8, LONG)))
    paper(tmp_path / "a.nxml", "7")
    paper(tmp_path / "b.nxml", "9")
    sources = (f"jats={tmp_path}/a.nxml", f"jats:others={tmp_path}/b.nxml", f"medline={tmp_path}/m.xml")
    run(tmp_path / "out", *sources)
    assert report(tmp_path / "out")["jats"]["dropped"] == {"retracted-elsewhere": 1}
    run(tmp_path / "licensed", *sources, licenses="unknown")
    assert report(tmp_path / "licensed")["jats"]["dropped"] == {"retracted-elsewhere": 1}


def retraction_notice(path, link):
    """A JATS notice whose own text is long enough to be kept."""
    text = article("77", f"{LONG} The editors take the article back.").decode()
    text = text.replace("<article>", '<article article-type="retraction" xmlns:xlink="http://www.w3.org/1999/xlink">')
    related = f'<related-article related-article-type="retracted-article" {link}/>'
    path.write_text(text.replace("</article-meta>", f"{related}</article-meta>"))


@pytest.mark.parametrize(
    "link", ['ext-link-type="doi" xlink:href="https://doi.org/10.1/A"', 'ext-link-type="pmid" xlink:href="7"']
)
@pytest.mark.parametrize("name", ["0.nxml", "z.nxml"])
def test_a_retraction_notice_reaches_the_original_in_every_source_and_file(tmp_path, link, name):
    folder = tmp_path / "papers"
    folder.mkdir()
    paper(folder / "a.nxml", "7", doi="10.1/a")
    paper(folder / "b.nxml", "9", doi="10.1/b")
    retraction_notice(folder / name, link)  # before or behind it
    (tmp_path / "m.xml").write_bytes(medline(citation(7, LONG + "Abstract."), citation(8, LONG)))
    paper(tmp_path / "c.nxml", doi="10.1/a")
    sources = (f"medline={tmp_path}/m.xml", f"jats={folder}", f"jats:others={tmp_path}/c.nxml")
    assert run(tmp_path / "out", *sources) == 0
    dropped = {name: counts["dropped"] for name, counts in report(tmp_path / "out").items()}
    by_doi = "doi" in link
    assert dropped["jats"] == {"non-article": 1, "retracted-elsewhere": 1}
    assert dropped["others"] == ({"retracted-elsewhere": 1} if by_doi else {})
    assert dropped["medline"] == ({} if by_doi else {"retracted-elsewhere": 1})
    run(tmp_path / "all", *sources, filter=("retracted=off",))
    assert "retracted-elsewhere" not in report(tmp_path / "all")["jats"]["dropped"]


def linked(pmid, kind, other, text=LONG):
    notice = f'<CommentsCorrections RefType="{kind}"><PMID Version="1">{other}</PMID></CommentsCorrections>'
    notices = f"<CommentsCorrectionsList>{notice}</CommentsCorrectionsList></MedlineCitation>"
    return citation(pmid, text).replace("</MedlineCitation>", notices)


@pytest.mark.parametrize("kind", ["RetractionOf", "RetractedandRepublishedFrom", "PartialRetractionOf"])
def test_a_citation_takes_back_another(tmp_path, kind):
    paper(tmp_path / "a.nxml", "7")
    (tmp_path / "pubmed24n0001.xml").write_bytes(medline(citation(7, LONG + "Seven."), citation(8, LONG)))
    (tmp_path / "pubmed24n0002.xml").write_bytes(
        medline(citation(9, LONG + "Nine."), linked(10, kind, 9, LONG + "Ten."))
    )
    (tmp_path / "pubmed24n0003.xml").write_bytes(medline(linked(11, kind, 7, LONG + "Eleven.")))
    run(
        tmp_path / "out",
        f"jats={tmp_path}/a.nxml",
        *(f"medline:m{n}={tmp_path}/pubmed24n000{n}.xml" for n in (3, 2, 1)),
    )
    gone = {"retracted-elsewhere": 1} if kind != "PartialRetractionOf" else {}
    dropped = {name: counts["dropped"] for name, counts in report(tmp_path / "out").items()}
    assert dropped == {"jats": gone, "m3": {}, "m2": gone, "m1": gone or {"same-pmid": 1}}


def test_a_later_record_of_the_same_releases_undoes_a_notice(tmp_path):
    for number, citations in enumerate(([citation(7, LONG + "Old.")], [linked(11, "RetractionOf", 7, LONG + "Eleven.")],
                                        [citation(7, LONG + "New.")]), 1):  # fmt: skip
        (tmp_path / f"pubmed24n000{number}.xml").write_bytes(medline(*citations))
    run(tmp_path / "out", f"medline={tmp_path}")
    assert [document["text"].split()[-1] for document in documents(tmp_path / "out", "medline")] == ["Eleven.", "New."]
    assert report(tmp_path / "out")["medline"]["dropped"] == {"retracted-elsewhere": 1}


def test_a_benchmark_article_reaches_a_paper_by_doi_though_its_citation_has_no_abstract(assets, tmp_path):
    pmid = next(iter(json.loads((assets / "eval" / "pubmedqa" / "test_ground_truth.json").read_text())))
    (tmp_path / "m.xml").write_bytes(medline(without_abstract(pmid, doi="10.1/a"), citation(8, LONG)))
    paper(tmp_path / "a.nxml", doi="10.1/A")
    out = tmp_path / "out"
    sources = (f"jats={tmp_path}/a.nxml", f"medline={tmp_path}/m.xml")
    run(out, *sources, benchmark=(f"pubmedqa={assets}/eval/pubmedqa",))
    assert report(out)["jats"]["dropped"] == {"benchmark-identity": 1}
    assert json.loads((out / "contamination.jsonl").read_text())["rule"] == "benchmark-identity"


def test_releases_keep_their_order_across_sources(tmp_path, capsys):
    (tmp_path / "updates").mkdir()
    (tmp_path / "updates/pubmed24n0002.xml").write_bytes(
        medline(citation(1, LONG + "New."), "<DeleteCitation><PMID>2</PMID></DeleteCitation>")
    )
    (tmp_path / "pubmed24n0001.xml").write_bytes(medline(citation(1, LONG + "Old."), citation(2, LONG + "Second.")))
    run(tmp_path / "out", f"medline:updates={tmp_path}/updates", f"medline:base={tmp_path}/pubmed24n0001.xml")
    assert documents(tmp_path / "out", "updates")[0]["text"].endswith("New.")
    assert documents(tmp_path / "out", "base") == []
    assert "not there" not in capsys.readouterr().err


def archive(members, mode="w"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.mark.parametrize("damage", ["header", "cut in a header", "cut at a member", "flipped bit"])
def test_an_archive_that_breaks_midway_is_damaged(tmp_path, damage):
    members = {f"{number}.nxml": article(number + 1, f"{LONG} {number}") for number in range(10)}
    whole = archive(members)
    second_half = whole.index(b"5.nxml")
    name = "a.tar"
    if damage == "header":
        data = whole[: second_half + 148] + b"xxxxxx" + whole[second_half + 154 :]  # the header's checksum
    elif damage == "cut in a header":
        data = whole[: second_half + 100]
    elif damage == "cut at a member":
        data = whole[:second_half]
    else:
        name = "a.tar.gz"
        compressed = bytearray(gzip.compress(whole, compresslevel=0))
        compressed[compressed.index(b"5.nxml") + 149] ^= 4
        data = bytes(compressed)
    (tmp_path / name).write_bytes(data)
    (tmp_path / "b.nxml").write_bytes(article(99, LONG))
    assert run(tmp_path / "out", f"jats={tmp_path}", profile="none") == 2
    assert list(report(tmp_path / "out")["jats"]["damaged"]) == [name]
    assert [document["pmid"] for document in documents(tmp_path / "out", "jats")] == ["99"]


def test_a_scratch_file_that_is_gone_is_made_again(tmp_path):
    (tmp_path / "m.xml").write_bytes(medline(*(citation(number, f"{LONG} {number}") for number in range(1, 9))))
    out = tmp_path / "out"
    run(out, f"medline={tmp_path}/m.xml")
    before = contents(out)
    for suffix in (".jsonl.zst", ".bands.npy"):
        next((out / "work" / "units").glob(f"*{suffix}")).unlink()
        run(out, f"medline={tmp_path}/m.xml")
        assert contents(out) == before


def test_numbers_that_no_table_holds(tmp_path):
    lines = [{"text": f"{LONG} {n}", "version": version} for n, version in enumerate((-1, 2**40, 3))]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run(tmp_path / "out", f"jsonl={tmp_path}/a.jsonl") == 0
    assert len(documents(tmp_path / "out", "jsonl")) == 3


def test_many_parts_need_few_open_files(tmp_path):
    """300 files, each a part of its own, by processes that may have 128 open."""
    folder = tmp_path / "m"
    folder.mkdir()
    for number in range(300):
        (folder / f"pubmed24n{number + 1:04d}.xml").write_bytes(medline(citation(number % 290 + 1, f"{LONG} {number}")))
    command = [sys.executable, "-m", "data", "curate", "--source", f"medline={folder}", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--no-samples", "--near-duplicates", "0.99"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert report(tmp_path / "out")["medline"]["dropped"]["same-pmid"] == 10


def test_a_long_text_is_no_abstract_whatever_its_format(tmp_path):
    text = " ".join(f"{LONG} Part {number} of the paper is about case {number * 7}." for number in range(80))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text, "pmid": "1"}))
    (tmp_path / "m.xml").write_bytes(medline(citation(1, LONG)))
    run(tmp_path / "out", f"medline={tmp_path}/m.xml", f"jsonl={tmp_path}/a.jsonl", profile="none")
    assert report(tmp_path / "out")["medline"]["dropped"] == {"same-pmid": 1}
