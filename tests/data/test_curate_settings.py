"""Curation as a command: what is refused, with a message that says what to mend, and that nothing was written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data import curate
from data.curate import Settings
from tests.data.raw_sources import documents, settings, write_raw

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def raw(tmp_path):
    return write_raw(tmp_path / "raw")


def test_another_run_in_the_same_folder_is_refused(raw, tmp_path):
    out = tmp_path / "out"
    assert curate.run(settings(raw, out)) == 0
    assert curate.run(settings(raw, out, workers=2)) == 0  # the same run: workers change nothing
    with pytest.raises(ValueError, match=r"holds a different run \(validation was 0\.03, now 0\.05\)"):
        curate.run(settings(raw, out, validation=0.05))
    with pytest.raises(ValueError, match=r"holds a different run \(sources was"):
        curate.run(settings(raw, out, source=(f"jsonl={raw}/replay",)))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is no curation folder"):
        curate.run(settings(raw, foreign))
    assert (foreign / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((), "no --source given"),
        (("medline",), "expected KIND=PATH"),
        (("medline=/nowhere/at/all",), "no such file or folder"),
        (("medline={raw}/replay",), "nothing to read; medline reads .xml"),
        (("html={raw}/who",), "unknown source kind 'html'"),
        (("jsonl:../x={raw}/replay",), "cannot be the name of an output folder"),
        (("jsonl:work={raw}/replay",), "cannot be the name of an output folder"),
        (("jsonl={raw}/replay", "jsonl={raw}/replay"), "two sources named jsonl"),
        (("guidelines={raw}/who/scan.pdf",), "nothing is left of 1 records: 1 no-text-in-pdf"),
    ],
)
def test_errors_a_user_can_mend(raw, tmp_path, sources, message):
    given = tuple(source.format(raw=raw) for source in sources)
    with pytest.raises(ValueError, match=message):
        curate.run(Settings(source=given, out=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"validation": 1.0}, "--validation 1.0"),
        ({"seed": -1}, "--seed -1"),
        ({"near_duplicates": 1.5}, "--near-duplicates 1.5"),
        ({"memory": 1}, "--memory 1: at least 64 MiB"),
        ({"field": ("text=body",)}, "--field 'text=body': expected NAME:FIELD=KEY"),
        ({"field": ("notes:text=body",)}, "no source is named notes"),
        ({"field": ("replay:licence=lic",)}, "no field licence; choose from id, text, title, url, license, language,"),
        ({"field": ("medline:text=body",)}, "medline is of kind medline; only jsonl has fields"),
        ({"field": ("replay:text=body", "replay:text=content")}, "text of replay is mapped twice"),
        ({"languages": "english"}, "--languages 'english': no language english; choose from ar, bg,.* all alone"),
        ({"languages": "en,xx"}, "no language xx; choose from"),
        ({"languages": "en,all"}, "no language all; choose from"),
        ({"languages": ""}, "--languages '': no language named"),
        ({"languages": "zh", "profile": "biomedical"}, "use the profile none"),
        ({"filter": ("no-rule=1",)}, "no-rule"),
        ({"filter": ("top-pair=nan",)}, "expected a number of 0 or more"),
        ({"filter": ("top-pair",)}, "expected RULE=NUMBER, RULE=on or RULE=off"),
        ({"licenses": "mit"}, "--licenses 'mit'"),
        ({"redact": "names"}, "--redact"),
        ({"benchmark": ("x",)}, "--benchmark 'x'"),
    ],
)
def test_settings_that_are_wrong_are_refused_before_anything_is_read(raw, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(curate, "plan", lambda *_: pytest.fail("a source was looked into"))
    monkeypatch.setattr(curate, "read_questions", lambda *_: pytest.fail("a benchmark was read"))
    with pytest.raises(ValueError, match=message):
        curate.run(settings(raw, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_all_languages_and_every_field_are_taken(raw, tmp_path):
    (raw / "replay/r.jsonl").write_text('{"body": "Die Gabe von Colchicin lindert den akuten Schmerz der Gicht."}\n')
    chosen = settings(
        raw, tmp_path / "out", source=(f"jsonl:replay={raw}/replay",), languages="all", field=("replay:text=body",)
    )
    assert curate.run(chosen) == 0
    assert len(documents(tmp_path / "out", "replay")) == 1


def test_missing_numbers_are_said_after_what_is_wrong(raw, tmp_path, capsys):
    for number in (1, 3):
        (raw / f"medline/pubmed21n{number:04d}.xml").write_bytes((raw / "medline/pubmed1.xml").read_bytes())
    given = {"source": (f"medline={raw}/medline",)}
    with pytest.raises(ValueError, match="nowhere"):
        curate.run(settings(raw, tmp_path / "out", benchmark=(f"mcq={tmp_path}/nowhere",), **given))
    assert capsys.readouterr().err == ""
    assert curate.run(settings(raw, tmp_path / "out", **given)) == 0
    assert "pubmed21n0002" in capsys.readouterr().err


def test_command_line(raw, tmp_path):
    def command(*words):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", "data", "curate", *words],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    done = command(
        "--source",
        f"medline={raw}/medline",
        f"jsonl:replay={raw}/replay",
        "--workers",
        "2",
        "--near-duplicates",
        "0",
        "--out",
        str(tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert len(documents(tmp_path / "out", "medline")) == 39
    (raw / "medline/pubmed1.xml").write_bytes(b"")
    failed = command("--source", f"medline={raw}/medline/pubmed1.xml", "--out", str(tmp_path / "other"))
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    (error,) = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert error.startswith("error: nothing is left of 0 records: 1 damaged files")
    assert error.endswith("pubmed1.xml: empty file, expected XML")
