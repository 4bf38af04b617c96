"""`python -m parallel.pipeline`: text, picture, numbers and one line for what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from parallel.pipeline import main
from parallel.schedule import Costs, build
from parallel.simulate import simulate
from parallel.timeline import text

ROOT = Path(__file__).resolve().parents[2]


def test_the_whole_job(tmp_path, capsys):
    picture = tmp_path / "timeline.png"
    main(["--stages", "8", "--microbatches", "32", "--schedule", "zb", "--out", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert lines[0] == "zb: 8 stages, 32 micro-batches, 1 chunk"
    rows = [line for line in lines if line.startswith("rank ")]
    assert len(rows) == 8
    assert all(row.count(letter) == 32 for row in rows for letter in "FBW")
    assert "bubble 9.43% of all ranks' time (1f1b 17.95%" in "\n".join(lines)
    assert "worst rank 191.35 = 1.051 of 1f1b's first stage" in lines
    assert max(map(len, lines)) <= 150


def drawn(name, chunks, micro_batches, columns):
    costs = Costs.uniform(2, chunks)
    return text(simulate(build(name, 2, micro_batches, chunks, costs), costs), columns).splitlines()


def test_drawings_in_full():
    assert drawn("1f1b", 1, 2, 40)[:3] == [
        "rank 0 |F0-F1-......B0----...B1----|",
        "rank 1 |...F0-B0----F1-B1----......|",
        "A column is 0.3333 of time.",
    ]
    assert drawn("interleaved", 2, 2, 60)[:3] == [
        "rank 0 |F0-F1-f0-f1-......b0----...b1----B0----B1----|",
        "rank 1 |...F0-F1-f0-b0----f1-b1----B0----B1----......|",
        "A column is 0.1667 of time. Lower case: chunks above the first.",
    ]


def test_what_does_not_fit_is_cut_out_of_the_middle():
    assert drawn("zb", 1, 9, 30)[:3] == [
        "rank 0 |FF..BWFB ... FBWFBWBW|",
        "rank 1 |.FFBWBWF ... WFBWFBW.|",
        "A column is 1 of time.",
    ]


def test_unequal_times_and_interleaved_numbers(tmp_path, capsys):
    words = "--stages 4 --microbatches 8 --chunks 2 --schedule interleaved --forward 0.7 --backward 1.3 --transfer 0.1"
    main([*words.split(), "--out", str(tmp_path / "timeline.svg")])
    output = capsys.readouterr().out
    assert "(chunks * micro-batches) = 18.75%, a bubble of 15.79%" in output
    assert "peak bytes by rank, in those of 1f1b's first stage (91): 1.375" in output
    assert (tmp_path / "timeline.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_a_limit_is_kept(tmp_path, capsys):
    main(["--stages", "4", "--microbatches", "8", "--limit", "0.5", "--out", str(tmp_path / "t.png")])
    share = float(capsys.readouterr().out.split("worst rank ")[1].split("=")[1].split()[0])
    assert 0.25 <= share <= 0.5


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--schedule 1f1b --chunks 2", "--schedule 1f1b takes one chunk, not 2: use --chunks 1"),
        ("--limit 0.1", "a limit of 18.2 bytes is below the 22.75 that any order needs"),
        ("--stages 0", "--stages, --microbatches and --chunks must be 1 or more"),
        ("--forward 0", "times must be positive"),
        ("--transfer -1", "--transfer must not be negative"),
        ("--stages x", "argument --stages: invalid int value: 'x'"),
        ("--schedule gpipe", "argument --schedule: invalid choice: 'gpipe'"),
        ("--out t.docx", "Format 'docx' is not supported"),
    ],
)
def test_bad_words(words, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=error):
        main(words.split())


def test_an_error_is_one_line():
    command = [sys.executable, "-m", "parallel.pipeline", "--stages", "many"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: argument --stages: invalid int value: 'many'")
    assert done.stderr.count("\n") == 1
