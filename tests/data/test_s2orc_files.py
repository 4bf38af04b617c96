"""S2ORC's files: which are read, which belong together, and the licences that they name."""

import pytest

from data.readers.s2orc import FORMAT, licence
from data.readers.s2orc_metadata import companion_path


def test_the_metadata_file_lies_beside_the_parses(tmp_path):
    for folder, name in (("pdf_parses", "pdf_parses_7.jsonl.gz"), ("metadata", "metadata_7.jsonl.gz")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    parses = tmp_path / "pdf_parses" / "pdf_parses_7.jsonl.gz"
    assert companion_path(parses) == tmp_path / "metadata" / "metadata_7.jsonl.gz"
    assert companion_path(tmp_path / "metadata" / "metadata_7.jsonl.gz") is None
    assert companion_path(parses.with_name("pdf_parses_8.jsonl.gz")) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("CCBY", "CC-BY"), ("CCBYSA", "CC-BY-SA"), ("CC0", "CC0-1.0"), ("publisher-specific license", None), ("", None)],
)
def test_licences(name, expected):
    assert licence(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("20230905_070349_00014_x8m", True),
        ("s2orc/part-0", True),
        ("a.jsonl", True),
        ("a.b/part", True),
        ("a.csv", False),
    ],
)
def test_files_of_the_api_have_no_suffix(name, expected):
    assert (FORMAT.pattern.fullmatch(name) is not None) is expected
