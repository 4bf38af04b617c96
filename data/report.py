"""The files in which a curation accounts for itself.

`report.json` (all numbers), `report.md` and `report.png` (for people), `contamination.jsonl` (what was dropped for a
benchmark) and `provenance.json` (`data.manifest`). The same input and settings give the same bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from data.account import Account, SourceReport, octave
from data.clusters import CLUSTERS_FILE
from data.documents import whole_file
from data.identities import RULES as DUPLICATE_RULES
from data.identities import VERDICTS
from data.manifest import MANIFEST_FILE, file_entry, manifest
from data.report_picture import PICTURE_FILE, draw
from data.report_text import CONTAMINATION_FILE, REPORT_FILE, markdown, source_table
from data.shared import SPLITS


class Report(Account):
    """The account, and how it is written."""

    def table(self) -> str:
        """The Markdown table of all sources."""
        return source_table(self)

    def write(self, settings: Mapping) -> None:
        """All files, `report.json` last: its presence means that the output is whole. `settings` are those of
        `data.curate`, by name."""
        out = self.shared.out
        if self.shared.questions.checked or self.shared.questions.pmids:
            _write(out / CONTAMINATION_FILE, self.contamination.lines())
        _write(out / REPORT_FILE, markdown(self))
        with whole_file(out / PICTURE_FILE) as stream:
            draw(self, stream)
        values = _json(self.to_json())
        files = {path.relative_to(out).as_posix(): file_entry(path) for path in self._files()}
        files["report.json"] = file_entry(out / "report.json", values.encode("utf-8", "backslashreplace"))
        sources = {name: source.kind for name, source in self.sources.items()}
        _write(out / MANIFEST_FILE, _json(manifest(settings, sources, self.plans, self.summaries, self.shared, files)))
        _write(out / "report.json", values)

    def _files(self) -> list[Path]:
        """What was written beside `report.json` and the manifest itself."""
        out = self.shared.out
        documents = [path for name in self.sources for path in sorted((out / name).glob("*.jsonl.zst"))]
        others = [out / name for name in (CLUSTERS_FILE, CONTAMINATION_FILE, REPORT_FILE, PICTURE_FILE)]
        return documents + [path for path in others if path.exists()]

    def to_json(self) -> dict:
        """The content of `report.json`."""
        drops = self.drops()
        return {
            "schema": "materia curation report",
            "version": 1,
            "records": self.total_records(),
            "dropped": drops.total(),
            "documents": self.total_documents(),
            "tokenizer": self.shared.tokenizer_sha256,
            "sources": {name: _source_json(source) for name, source in self.sources.items()},
            "rules": [vars(rule) for rule in self.rules()],
            "duplicates": {
                "dropped": {rule: drops[rule] for rule in DUPLICATE_RULES[VERDICTS:] if drops[rule]},
                "similarity": self.shared.near_duplicates or None,
                "pairs_compared": self.compared,
                "clusters": self.clusters,
                "file": CLUSTERS_FILE,
            },
            "benchmarks": self.contamination.benchmarks,
        }


def _source_json(source: SourceReport) -> dict:
    values = {key: dict(sorted(value.items())) if isinstance(value, dict) else value
              for key, value in vars(source).items() if key not in ("token_sample", "samples")}  # fmt: skip
    for counter in ("documents", "characters", "words"):
        values[counter] = {split: getattr(source, counter)[split] for split in SPLITS}
    values["cleaned_away"] = source.cleaned_away()
    values["lengths"] = {octave(number): count for number, count in sorted(source.lengths.items())}
    values["years"] = {str(year or "unknown"): count for year, count in sorted(source.years.items())}
    values["license_classes"] = dict(sorted(source.license_classes().items()))
    values["tokens"] = _tokens_json(source) if source.token_sample[0] else None
    return values


def _tokens_json(source: SourceReport) -> dict:
    sampled, tokens = source.token_sample
    return {
        "estimated_from": {"characters": sampled, "tokens": tokens},
        "read": source.tokens(source.characters_read),
        "dropped": {rule: source.tokens(count) for rule, count in sorted(source.dropped_characters.items())},
        **{split: source.tokens(source.characters[split]) for split in SPLITS},
    }


def _json(values: Mapping) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Temporary name first. Half a surrogate pair, as in a file name that is not UTF-8, is written as its escape."""
    with whole_file(path) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))
