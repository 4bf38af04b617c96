"""S2ORC: papers as Semantic Scholar parsed them from PDF, in the forms that were released; a document a paper.

- 2019: one record with `metadata` and `grobid_parse` (or `latex_parse`).
- 2020: `pdf_parses/` and `metadata/` apart, joined by `paper_id`; also the output of s2orc-doc2json and CORD-19.
- Since 2021 (Datasets API): `content` with one text and `annotations`, JSON strings of spans; `s2orc_v2` calls it
  `body`, with the references in a `bibliography` of its own.

The form is recognised record by record. A record with metadata only is its abstract, or a `no-text` drop. Authors,
references and acknowledgements are left out; `data.readers.s2orc_text` writes the rest.
"""

import re
from collections.abc import Iterator

from data.documents import Document
from data.readers.inline import squeeze
from data.readers.interface import ABSTRACT, Drop, Format, InputFile
from data.readers.licence_names import spdx
from data.readers.records import Record, read_records
from data.readers.s2orc_forms import MalformedPaper, annotated_paper, parsed_paper
from data.readers.s2orc_metadata import Companion, companion_path
from data.readers.s2orc_text import Block, Paper, without_font_signs, written_once
from data.special_tokens import without_marks

_DIVIDED_LICENCE = re.compile(r"CC(0|BY)((?:NC)?)((?:ND|SA)?)", re.IGNORECASE)
_TRANSLATED = re.compile(r"^\[([^\[\]]*)\](\.?)$")
"""PubMed's mark of a title that was translated."""
_PARSES = ("grobid_parse", "pdf_parse", "latex_parse", "jats_parse")


def read(file: InputFile) -> Iterator[Document | Drop]:
    """A document a paper, in file order; titles, abstracts and identifiers of the parses of 2020 are in its
    companion."""
    companion = Companion(file.companion) if file.companion is not None else None
    for record in read_records(file):
        if isinstance(record, Drop):
            yield record
            continue
        try:
            yield _document(record, companion, file)
        except MalformedPaper as error:
            yield Drop("bad-record", f"{record.place}: {error}")


def _document(record: Record, companion: Companion | None, file: InputFile) -> Document | Drop:
    value = record.value
    metadata = {**value, **_object(value, "metadata")}
    if companion is not None and isinstance(value.get("body_text"), list):
        metadata |= companion.find(str(value.get("paper_id")))
    titles = [squeeze(_string(metadata.get("title")))]
    full_text = True
    if isinstance(value.get("content"), dict) or isinstance(value.get("body"), dict):
        paper, printed_title = annotated_paper(value, file)
        titles.append(printed_title)
    elif isinstance(value.get("body_text"), list):
        paper = parsed_paper(value, file)
    elif any(name in value for name in _PARSES):
        parses = [value[name] for name in _PARSES if isinstance(value.get(name), dict)]
        chosen = next((parse for parse in parses if parse.get("body_text")), parses[0] if parses else {})
        paper = parsed_paper(chosen, file)
    elif ("paper_id" in value or "corpusid" in value) and ("title" in value or "abstract" in value):
        paper, full_text = Paper(), False
    else:
        return Drop("bad-record", f"{record.place}: no form of S2ORC that is known; keys: {', '.join(value)}")
    abstract = written_once(squeeze(_string(metadata.get("abstract"))), file.notes)
    if abstract:  # the publisher's own wording, not what was parsed from a page
        paper.abstract = [Block(abstract)]
    title = next((_TRANSLATED.sub(r"\1\2", title) for title in titles if title), None)
    if file.settings.special_tokens:
        paper.take_marks_out(file.notes)
        title = without_marks(title, file.notes) if title else None
    text = without_font_signs(paper.text(title, file.settings.special_tokens, file.notes), file.notes)
    if not text:
        return Drop("no-text", f"{record.place}: neither abstract nor text")
    identity = str(value.get("corpusid") or value.get("paper_id") or record.place)
    fields = _fields(value, metadata)
    if not full_text:
        identity, fields["types"] = f"{identity}:abstract", [*(fields["types"] or ()), ABSTRACT]
    return Document(id=identity, source=file.source, title=title, text=text, **fields)


def _fields(value: dict, metadata: dict) -> dict[str, str | list[str] | None]:
    """Identifiers, journal, date, licence and address."""
    open_access = _object(value, "openaccessinfo") or _object(_object(_object(value, "content"), "source"), "oainfo")
    names = {**_object(open_access, "externalids"), **_object(metadata, "identifiers"), **_object(value, "externalids")}
    names = {key.lower(): found for key, found in names.items() if found}
    pmid = _identifier(names.get("pubmed") or metadata.get("pubmed_id") or metadata.get("pmid"))
    pmcid = _identifier(names.get("pubmedcentral") or metadata.get("pmc_id") or metadata.get("pmcid"))
    doi = _identifier(names.get("doi") or metadata.get("doi"))
    journal = metadata.get("journal")
    journal = _string(journal.get("name")) if isinstance(journal, dict) else _string(journal)
    types = metadata.get("publicationtypes")
    url = open_access.get("openaccessurl") or open_access.get("url") or metadata.get("s2_url") or metadata.get("url")
    date = _identifier(metadata.get("publicationdate") or metadata.get("year"))
    return {
        "pmid": pmid,
        "pmcid": f"PMC{pmcid.upper().removeprefix('PMC')}" if pmcid else None,
        "doi": doi,
        "journal": squeeze(journal) or squeeze(_string(metadata.get("venue"))) or None,
        "date": date if date and re.match(r"\d{4}(-\d\d){0,2}$", date) else None,
        "license": licence(_string(open_access.get("license"))),
        "url": _string(url) or (f"https://doi.org/{doi}" if doi else None),
        "types": [kind for kind in types if isinstance(kind, str)] if isinstance(types, list) else None,
    }


def licence(name: str) -> str | None:
    """The SPDX name of `CCBYNCND` and the like; other wordings by `data.readers.licence_names`."""
    parts = _DIVIDED_LICENCE.fullmatch(name.strip())
    if parts is None:
        return spdx(name) if name else None
    if parts.group(1) == "0":
        return "CC0-1.0"
    return "-".join(["CC", *(part.upper() for part in parts.groups() if part)])


def _object(value: dict, key: str) -> dict:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _identifier(value: object) -> str | None:
    """An identifier or year, which may be written as a number, or in a list of one."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, int | str) and not isinstance(value, bool):
        return str(value).strip() or None
    return None


FORMAT = Format(
    read,
    re.compile(r"(.*/)?[^./]+|.*\.(jsonl|ndjson|json)"),  # files of the Datasets API have no suffix but .gz
    ".jsonl, .jsonl.gz, .json, and the .gz files of the Datasets API",
    splittable=True,
    full_text=True,
    marks=True,
    companion=companion_path,
)
