"""metrics.jsonl survives crashes and resumes; the picture is drawn from it."""

import json

import pytest
import torch

from training.log import RunLog, draw_losses, peak_flops, read_metrics

LINE = {"loss": 2.0, "lr": 1e-3, "tokens_per_second": 10.0, "mfu": 0.1}


def test_resume_drops_the_lines_of_steps_done_again(tmp_path):
    log = RunLog(tmp_path, 4, 0)
    for step in (1, 2, 3):
        log.step({"step": step, **LINE})
        log.validation(step, {"a": 2.0})
    log.bar.close()
    again = RunLog(tmp_path, 4, 2)
    again.step({"step": 3, **LINE, "loss": 1.0})
    again.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], "loss" in line) for line in lines] == [
        (1, True),
        (1, False),
        (2, True),
        (2, False),
        (3, True),
    ]
    assert lines[-1]["loss"] == 1.0
    assert (tmp_path / "loss.png").stat().st_size > 5000


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 1, **LINE}) + '\n{"step": 2, "lo')
    assert [line["step"] for line in read_metrics(file)] == [1]
    file.write_text('{"step": 1, "lo\n' + json.dumps({"step": 2, **LINE}) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: not JSON"):
        read_metrics(file)


def test_picture_of_a_run_without_validation(tmp_path):
    draw_losses([{"step": 1, **LINE}], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_peak_is_measured_where_no_data_sheet_is_known():
    flops, source = peak_flops(torch.device("cpu"), torch.float32)
    assert flops > 1e8
    assert source == "measured matrix product"
