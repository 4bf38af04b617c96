"""The other half of the S2ORC release of 2020: `metadata/metadata_7.jsonl` for `pdf_parses/pdf_parses_7.jsonl`."""

from collections.abc import Iterator
from pathlib import Path

from data.readers.interface import Drop, InputFile
from data.readers.records import read_records

_FIELDS = ("title", "abstract", "year", "pubmed_id", "pmc_id", "doi", "venue", "journal", "s2_url")


def companion_path(path: Path) -> Path | None:
    """Where the metadata of a file in `pdf_parses/` lies; None for other files, and when it is not there."""
    if path.parent.name != "pdf_parses":
        return None
    found = path.parent.parent / "metadata" / path.name.replace("pdf_parses", "metadata")
    return found if found.is_file() else None


class Companion:
    """Metadata by paper, read in step with the parses, which are in the same order: only records that were passed over
    and have a parse are held."""

    def __init__(self, file: InputFile):
        self.records = self._read(file)
        self.passed: dict[str, dict] = {}

    @staticmethod
    def _read(file: InputFile) -> Iterator[dict]:
        for record in read_records(file):
            if isinstance(record, Drop):
                file.notes[f"metadata records that cannot be read ({record.rule})"] += 1
            elif record.value.get("has_pdf_parse") is not False:
                yield {"paper_id": str(record.value.get("paper_id"))} | {
                    name: record.value.get(name) for name in _FIELDS
                }

    def find(self, paper_id: str) -> dict:
        """What is known about a paper; empty when nothing is."""
        if paper_id in self.passed:
            return self.passed.pop(paper_id)
        for record in self.records:
            if record["paper_id"] == paper_id:
                return record
            self.passed[record["paper_id"]] = record
        return {}
