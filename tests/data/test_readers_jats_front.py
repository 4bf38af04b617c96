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
    (document,) = documents(source)
    assert document.types == types


def test_every_article_of_a_set_is_read():
    found = documents(article(title="One", pmcid="PMC7"), article(title="Two"), article(title="Three"))
    assert [(document.id, document.title) for document in found] == [
        ("PMC7", "One"),
        ("a.xml#2", "Two"),
        ("a.xml#3", "Three"),
    ]
