"""What the front of a JATS article says about it: identifiers, date, licence, kind of publication.

Expects plain tag names, without namespaces.
"""

import re
from collections.abc import Iterator

from lxml import etree

from data.readers.inline import squeeze
from data.readers.licence_names import spdx

_DATE_ORDER = ("epub", "ppub", "pub", "collection", "epub-ppub", "pmc-release")
_LICENCE_TAGS = ("license", "license_ref", "copyright-statement")
_NOTICES = {
    "retraction": "Retraction of Publication",
    "partial-retraction": "Retraction of Publication",
    "correction": "Published Erratum",
    "expression-of-concern": "Expression of Concern",
}
"""article-type to the publication type that MEDLINE gives the same notice."""
_HREF = "{http://www.w3.org/1999/xlink}href"
RETRACTED = "Retracted Publication"
"""MEDLINE's publication type of an article that was taken back."""
_RETRACTED_TYPES = ("retracted-article", "retracted-publication")
_POINTS_TO_RETRACTION = ("retraction-forward", "retraction")
_RETRACTED_TITLE = re.compile(r"[\[(]?\s*(?:RETRACTED\b|Retracted(?: article| paper)?\s*[:\])])")
_RETRACTS_LESS = ("partial-retraction", "expression-of-concern")
"""Values of article-type of notices after which the article still stands, whatever they call it."""
_ADDRESS = r"(?:https?://)?(?:[a-z]+\.)*"
_IDENTIFIERS = {
    "doi": re.compile(rf"(?:{_ADDRESS}doi\.org/|(?:info:)?doi[:/]\s*)?(10\.[\d.]+/\S+)", re.IGNORECASE),
    "pmcid": re.compile(rf"(?:{_ADDRESS}ncbi\.nlm\.nih\.gov/(?:pmc/)?articles/)?PMC(\d+)(?:\.\d+)?/?", re.IGNORECASE),
    "pmid": re.compile(rf"(?:{_ADDRESS}ncbi\.nlm\.nih\.gov/(?:pubmed/)?|pmid:\s*)(\d+)/?", re.IGNORECASE),
}
"""Forms that say themselves what they are."""
_NUMBERS = {"pmid": "pmid", "pubmed": "pmid", "pmc": "pmcid", "pmcid": "pmcid"}
"""Values of ext-link-type and pub-id-type with which a bare number is an identifier."""


def article_identifiers(meta: etree._Element | None) -> dict[str, str]:
    """The ids by `pub-id-type`: `pmid`, `pmc` (as `PMC123`), `doi`, ..."""
    found: dict[str, str] = {}
    for element in meta.iterchildren("article-id") if meta is not None else ():
        kind = (element.get("pub-id-type") or "").replace("pmcid", "pmc")
        value = squeeze(element.text or "")
        if kind == "pmc" and value:
            value = "PMC" + value.upper().removeprefix("PMC").partition(".")[0]
        if value:
            found.setdefault(kind, value)
    return found


def publication_types(article: etree._Element, meta: etree._Element | None, title: str | None) -> list[str]:
    """The article-type, then MEDLINE's publication type of a notice (`Retraction of Publication`, ...) or of a
    retracted article (`Retracted Publication`), which names its retraction or says so in its title."""
    kind = article.get("article-type")
    types = [kind] if kind else []
    if kind in _NOTICES:
        return [*types, _NOTICES[kind]]
    related = {
        element.get("related-article-type") for element in (meta.iter("related-article") if meta is not None else ())
    }
    if "retracted-article" in related:  # a notice under another article-type points to what it takes back
        return [*types, _NOTICES["retraction"]]
    if kind in _RETRACTED_TYPES or related.intersection(_POINTS_TO_RETRACTION) or _RETRACTED_TITLE.match(title or ""):
        types.append(RETRACTED)
    return types


def retracted_articles(article: etree._Element) -> Iterator[dict[str, str]]:
    """The `pmid`, `pmcid` and `doi` of each article that a retraction notice takes back: {} of one that it names in
    another way, as by volume and page."""
    if article.get("article-type") in _RETRACTS_LESS:
        return
    meta = article.find("front/article-meta")
    for related in meta.iter("related-article") if meta is not None else ():
        if related.get("related-article-type") == "retracted-article":
            named = [(related.get("ext-link-type"), related.get(_HREF)), (None, related.text)]
            named += [(part.get("pub-id-type") or part.get("ext-link-type"), part.get(_HREF) or part.text)
                      for part in related.iter("pub-id", "ext-link")]  # fmt: skip
            found = (_identifier(kind or "", squeeze(value or "").rstrip(".,; ")) for kind, value in named)
            yield dict(reversed([pair for pair in found if pair]))  # the first of a kind counts


def _identifier(kind: str, value: str) -> tuple[str, str] | None:
    for name, form in _IDENTIFIERS.items():
        match = form.fullmatch(value)
        if match:
            return name, f"PMC{match.group(1)}" if name == "pmcid" else match.group(1)
    name = _NUMBERS.get(kind)
    if name and value.isdecimal():
        return name, f"PMC{value}" if name == "pmcid" else value
    return None


def article_licence(meta: etree._Element | None) -> str | None:
    """The SPDX name of the licence (see `data.readers.licence_names`); None where none is named."""
    texts = []
    for element in meta.iter(*_LICENCE_TAGS) if meta is not None else ():
        for part in element.iter():
            texts += [value for key, value in part.items() if key.endswith(("href", "license-type"))]
        texts.append("".join(element.itertext()))
    return spdx(squeeze(" ".join(texts)))


def article_date(meta: etree._Element | None) -> str | None:
    """ISO date, as exact as known: the first by _DATE_ORDER, else the first."""
    dates: dict[str, dict[str, str]] = {}
    for element in meta.iterchildren("pub-date") if meta is not None else ():
        kind = element.get("pub-type") or element.get("date-type") or "pub"
        dates.setdefault(kind, {part.tag: squeeze(part.text or "") for part in element})
    chosen = next((dates[kind] for kind in _DATE_ORDER if kind in dates), next(iter(dates.values()), {}))
    if not chosen.get("year"):
        return None
    date = chosen["year"]
    for part in ("month", "day"):
        if not chosen.get(part, "").isdecimal():
            break
        date += f"-{int(chosen[part]):02d}"
    return date
