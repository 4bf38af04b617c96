"""JATS: licence, kind of publication, sets of articles."""

import io
import json

import pytest

from data.readers.interface import InputFile
from data.readers.jats import read
from data.readers.licence_names import PUBLIC_DOMAIN, spdx


def documents(*articles):
    source = "".join(articles)
    if len(articles) > 1:
        source = f"<pmc-articleset>{source}</pmc-articleset>"
    return list(read(InputFile(io.BytesIO(source.encode()), "a.xml", "jats")))


def article(kind="research-article", title="A title", meta="", pmcid=""):
    identifier = f'<article-id pub-id-type="pmcid">{pmcid}</article-id>' if pmcid else ""
    return f"""<article article-type="{kind}" xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>{identifier}<title-group>
      <article-title>{title}</article-title></title-group>{meta}</article-meta></front><body><p>Text.</p></body></article>"""


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("http://creativecommons.org/licenses/by-nc-nd/4.0/", "CC-BY-NC-ND-4.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("http://creativecommons.org/publicdomain/mark/1.0/", "CC-PDM-1.0"),
        ("http://creativecommons.org/licenses/by/2.0", "CC-BY-2.0"),
        ("http://creativecommons.org/licenses/by-nc/2.0/uk/", "CC-BY-NC-2.0"),
        ("the Creative Commons Attribution License, which permits unrestricted use, except commercial", "CC-BY"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 3.0 Unported License", "CC-BY-NC-SA-3.0"),
        ("Creative Commons Attribution Non-Commercial No Derivatives License", "CC-BY-NC-ND"),
        ("Creative Commons Attribution 4.0 International License, which permits", "CC-BY-4.0"),
        ("licensed under CC BY-NC-ND 4.0", "CC-BY-NC-ND-4.0"),
        ("made available under CC0", "CC0-1.0"),
        ("This work is in the public domain", PUBLIC_DOMAIN),
        ("open-access This article is free to read", None),
        ("Copyright 2019 Elsevier. All rights reserved.", None),
        ("", None),
    ],
)
def test_licences(statement, expected):
    assert spdx(statement) == expected


def test_licences_of_real_articles(assets):
    """Where the list names a licence, ours is the same; where it says that no address is given, ours has no version."""
    listed = {entry["file"]: entry["licence"] for entry in json.loads((assets / "jats" / "licences.json").read_text())}
    seen = 0
    for path in sorted((assets / "jats").rglob("*.nxml")):
        licence = listed[path.relative_to(assets).as_posix()]
        with path.open("rb") as stream:
            (document,) = read(InputFile(stream, path.name, "jats"))
        if licence.startswith("CC "):
            seen += 1
            assert document.license == licence.replace(" ", "-")
        elif licence.startswith("public-domain"):
            assert document.license == "CC-PDM-1.0"
        else:
            assert document.license in (None, "CC-BY", PUBLIC_DOMAIN)
    assert seen == 38


RELATED = '<related-article related-article-type="{}" xlink:href="10.1/y"/>'


@pytest.mark.parametrize(
    ("source", "types"),
    [
        (article(), ["research-article"]),
        (article(meta=RELATED.format("companion")), ["research-article"]),
        (article(meta=RELATED.format("retraction-forward")), ["research-article", "Retracted Publication"]),
        (article(title="RETRACTED: A title"), ["research-article", "Retracted Publication"]),
        (article(title="Retracted article: a title"), ["research-article", "Retracted Publication"]),
        (article(title="[Retracted] A title"), ["research-article", "Retracted Publication"]),
        (article(title="Retracted implants in 30 patients"), ["research-article"]),
        (article("retracted-article"), ["retracted-article", "Retracted Publication"]),
        (article("retraction", "Retracted: A title"), ["retraction", "Retraction of Publication"]),
        (article("letter", meta=RELATED.format("retracted-article")), ["letter", "Retraction of Publication"]),
        (article("correction", meta=RELATED.format("corrected-article")), ["correction", "Published Erratum"]),
        (article("expression-of-concern"), ["expression-of-concern", "Expression of Concern"]),
    ],
)
def test_publication_types(source, types):
    document = documents(source)[0]
    assert document.types == types


def related(content="", **attributes):
    given = {
        "related-article-type": "retracted-article",
        **{name.replace("_", "-"): text for name, text in attributes.items()},
    }
    values = "".join(f' {"xlink:href" if name == "href" else name}="{text}"' for name, text in given.items())
    return f"<related-article{values}>{content}</related-article>"


DOI = {"doi": "10.1371/journal.pone.0000217"}


@pytest.mark.parametrize(
    ("element", "named"),
    [
        (related(ext_link_type="doi", href=DOI["doi"]), DOI),
        (related(href=DOI["doi"]), DOI),
        (related(ext_link_type="doi", href=f"doi: {DOI['doi']}"), DOI),
        (related(ext_link_type="uri", href=f"https://doi.org/{DOI['doi']}"), DOI),
        (related(ext_link_type="doi", href=f"http://dx.doi.org/{DOI['doi']}"), DOI),
        (related(ext_link_type="doi", href=f"info:doi/{DOI['doi']}"), DOI),
        (related(f"{DOI['doi']}.", journal_id="pone", vol="1", page="e1"), DOI),
        (related(f"<pub-id pub-id-type='doi'>{DOI['doi']}</pub-id><pub-id pub-id-type='pmid'>17</pub-id>"), {"pmid": "17", **DOI}),
        (related(f"<ext-link ext-link-type='doi' xlink:href='{DOI['doi']}'>the article</ext-link>"), DOI),
        (related(ext_link_type="doi", href="10.1000.10/123"), {"doi": "10.1000.10/123"}),
        (related(ext_link_type="pmid", href="17299597"), {"pmid": "17299597"}),
        (related(ext_link_type="pubmed", href="17299597"), {"pmid": "17299597"}),
        (related(ext_link_type="uri", href="https://pubmed.ncbi.nlm.nih.gov/17299597/"), {"pmid": "17299597"}),
        (related(ext_link_type="uri", href="http://www.ncbi.nlm.nih.gov/pubmed/17299597"), {"pmid": "17299597"}),
        (related(ext_link_type="pmcid", href="PMC1790863"), {"pmcid": "PMC1790863"}),
        (related(ext_link_type="pmc", href="1790863"), {"pmcid": "PMC1790863"}),
        (related(ext_link_type="uri", href="https://pmc.ncbi.nlm.nih.gov/articles/PMC1790863/"), {"pmcid": "PMC1790863"}),
        (related(ext_link_type="uri", href="https://www.ncbi.nlm.nih.gov/pmc/articles/pmc1790863"), {"pmcid": "PMC1790863"}),
    ],
)  # fmt: skip
def test_a_retraction_names_what_it_takes_back(element, named):
    notice, retraction = documents(article("retraction", meta=element))
    about = retraction.about
    assert {name: getattr(about, name) for name in ("pmid", "pmcid", "doi") if getattr(about, name)} == named
    assert "Retraction of Publication" in notice.types


def test_a_notice_may_take_back_several_articles():
    found = documents(article("retraction", meta="".join(related(href=f"10.1/{number}") for number in range(3))))
    assert [item.about.doi for item in found[1:]] == ["10.1/0", "10.1/1", "10.1/2"]


@pytest.mark.parametrize(
    ("kind", "element"),
    [
        ("partial-retraction", related(href="10.1/x")),
        ("retraction", related(href="10.1/x").replace("retracted-article", "partial-retraction")),
        ("expression-of-concern", related(href="10.1/x")),
        ("correction", related(href="10.1/x").replace("retracted-article", "corrected-article")),
        ("research-article", related(href="10.1/x").replace("retracted-article", "retraction-forward")),
        ("retraction", ""),
    ],
)
def test_other_notices_take_nothing_back(kind, element):
    assert len(documents(article(kind, meta=element))) == 1


@pytest.mark.parametrize(
    "element",
    [
        related(ext_link_type="pmc", journal_id="BMJ", journal_id_type="nlm-ta", vol="1", page="17"),
        related("Smith et al.", href="https://journal.org/view/17"),
        related(href="17"),
    ],
)
def test_a_notice_that_names_no_identifier_is_counted(element):
    file = InputFile(io.BytesIO(article("retraction", meta=element).encode()), "a.xml", "jats")
    assert len(list(read(file))) == 1
    assert file.notes == {"retraction notice that names no PMID, PMCID or DOI": 1}


def test_every_article_of_a_set_is_read():
    found = documents(article(title="One", pmcid="PMC7"), article(title="Two"), article(title="Three"))
    assert [(document.id, document.title) for document in found] == [
        ("PMC7", "One"),
        ("a.xml#2", "Two"),
        ("a.xml#3", "Three"),
    ]
