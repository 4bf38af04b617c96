"""The command: modes, rescoring, baseline, default choices and one-line errors, on a small random model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import eval as command
from data.tokenizer import load_tokenizer
from evaluation.predictions import read_predictions
from model.config import LlamaConfig
from model.huggingface import save_model
from model.llama import Llama

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A random model with one id a byte."""
    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = LlamaConfig(258, 16, 32, 1, 2, 2, 8, 700, bos_token_id=0, eos_token_id=1)
    model = Llama(config)
    model.initialise(0)
    save_model(model, folder)
    assert load_tokenizer(folder).decode(load_tokenizer(folder).encode("Ab é")) == "Ab é"
    return folder


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """Two small benchmarks in their real formats, with shots."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "medqa4").mkdir()
    for name, count in (("test", 12), ("train", 4)):
        records = [
            {"question": f"Which drug treats condition {name} {i}?", "answer_idx": "ABCD"[i % 4],
             "options": {"A": "alpha", "B": "beta", "C": f"g{i}", "D": "d"}} for i in range(count)
        ]  # fmt: skip
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "medqa4" / f"phrases_no_exclude_{name}.jsonl").write_text(lines)
    (folder / "pubmedqa").mkdir()
    abstract = {"CONTEXTS": ["A long abstract. " * 60], "final_decision": "yes"}
    abstracts = {str(i): {"QUESTION": f"Does it {i}?", **abstract} for i in range(6)}
    (folder / "pubmedqa/ori_pqal.json").write_text(json.dumps(abstracts))
    (folder / "pubmedqa/test_ground_truth.json").write_text(json.dumps(dict.fromkeys("0123", "yes")))
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, arguments)])
    return command.main()


@pytest.fixture
def evaluate(monkeypatch, model_folder, benchmarks):
    """Runs the command on both benchmarks; returns (report, predictions)."""

    def evaluated(out, *arguments):
        names = [f"{name}={benchmarks / name}" for name in ("medqa4", "pubmedqa")]
        assert run(monkeypatch, "--model", model_folder, "--benchmark", *names, "--out", out, *arguments) == 0
        return json.loads((out / "report.json").read_text()), read_predictions(out / "predictions.jsonl")

    return evaluated


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ((), "letter"),
        (("--score", "text"), "text"),
        (("--shots", "2"), "letter"),
        (("--cot", "--max-new-tokens", "8"), "cot"),
    ],
)
def test_modes(evaluate, tmp_path, capsys, flags, mode):
    report, predictions = evaluate(tmp_path, *flags)
    assert report["run"]["mode"] == mode
    assert {name: score["n"] for name, score in report["benchmarks"].items()} == {"medqa4": 12, "pubmedqa": 4}
    assert report["benchmarks"]["pubmedqa"]["cut"] == {"context": 4}
    cue = {"letter": "The answer is:", "text": "Answer:", "cot": "Let's think step by step."}[mode]
    for row in predictions:
        assert row.prompt.endswith(cue)
        assert len(row.prompt.encode()) < 700
        assert row.generations if mode == "cot" else set(row.option_logprobs) == set(row.options)
    printed = capsys.readouterr().out
    assert "medqa4" in printed
    assert f"written to {tmp_path}" in printed
    assert (tmp_path / "scores.png").is_file()


def test_sc_cot_is_reproducible_and_rescoring_gives_the_same(evaluate, monkeypatch, tmp_path):
    _, first = evaluate(tmp_path / "a", "--sc-cot", "--max-new-tokens", "12")
    _, second = evaluate(tmp_path / "b", "--sc-cot", "--max-new-tokens", "12", "--batch-tokens", "900")
    assert first == second
    assert all(len(row.generations) == 5 and len(row.parsed) == 5 for row in first)
    assert len(set(first[0].generations)) > 1
    assert run(monkeypatch, "--rescore", tmp_path / "a/predictions.jsonl", "--out", tmp_path / "c") == 0
    for name in ("predictions.jsonl", "report.json", "report.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_rescoring_reads_the_saved_texts_anew(evaluate, monkeypatch, tmp_path):
    evaluate(tmp_path / "a", "--cot", "--max-new-tokens", "4", "--limit", "2")
    path = tmp_path / "a/predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["generations"] = [f"So the answer is {row['options'][row['gold']]}."]
        row |= {"parsed": [None], "votes": {}, "prediction": None, "correct": False}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(monkeypatch, "--rescore", path, "--out", tmp_path / "b")
    report = json.loads((tmp_path / "b/report.json").read_text())
    assert [score["accuracy"] for score in report["benchmarks"].values()] == [1.0, 1.0]


def test_baseline_table(evaluate, tmp_path, capsys):
    evaluate(tmp_path / "base", "--score", "text")
    report, _ = evaluate(tmp_path / "new", "--baseline", tmp_path / "base")
    score = report["benchmarks"]["medqa4"]
    test = score["baseline"]["test"]
    assert score["correct"] - test["gained"] + test["lost"] == round(12 * score["baseline"]["accuracy"])
    assert "continued" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not asked the same questions of medqa4"):
        evaluate(tmp_path / "part", "--baseline", tmp_path / "base", "--limit", "3")


def test_limit_takes_the_same_questions_every_time(evaluate, tmp_path):
    _, few = evaluate(tmp_path / "a", "--limit", "3")
    _, more = evaluate(tmp_path / "b", "--limit", "5", "--seed", "9")
    assert len(few) == 6
    assert {row.id for row in few} < {row.id for row in more}


def test_without_flags_the_newest_run_answers_the_demo_benchmarks(monkeypatch, tmp_path, model_folder, benchmarks):
    monkeypatch.chdir(tmp_path)
    for number, step in ((1, 100), (1, 20), (2, 7)):
        checkpoint = tmp_path / f"runs/r{number}/checkpoints/step-{step:08d}"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.symlink_to(model_folder)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/medqa4").symlink_to(benchmarks / "medqa4")
    (tmp_path / "demo/benchmarks.json").write_text(json.dumps({"medqa4": "medqa4"}))
    assert run(monkeypatch) == 0
    report = json.loads((tmp_path / "scores/letter/report.json").read_text())
    assert report["run"]["model"] == "runs/r2/checkpoints/step-00000007"
    assert command.model_folder(str(tmp_path / "runs/r1")).name == "step-00000100"


MEDQA4 = ("--model", "{model}", "--benchmark", "medqa4={bench}/medqa4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "{model}", "--benchmark", "medqa4={tmp}/absent"), "no such file or folder"),
        (("--model", "{model}", "--benchmark", "medqa4"), "expected NAME=PATH"),
        (("--model", "{model}", "--benchmark", "usmle={tmp}"), "unknown benchmark 'usmle'"),
        (
            ("--model", "{tmp}", "--benchmark", "medqa4={bench}/medqa4"),
            "neither a Hugging Face folder with a config.json nor a run",
        ),
        ((*MEDQA4, "--shots", "9"), "has 4 questions to show"),
        ((*MEDQA4, "--limit", "0"), "--limit 0: expected 1 or more"),
        ((*MEDQA4, "--cot", "--max-new-tokens", "700"), "--max-new-tokens 700: the model's context is 700 tokens"),
        ((*MEDQA4, *MEDQA4), "a name is given twice"),
        (("--cot", "--sc-cot"), "exclude each other"),
        (("--baseline", "scores/letter"), "--out would replace it"),
        (("--rescore", "{tmp}/predictions.jsonl"), "no such file"),
        (("--benchmark", "medqa4={bench}/medqa4"), "no run with a checkpoint"),
        ((), "benchmarks.json: no such file"),
    ],
)
def test_errors_name_the_remedy(monkeypatch, tmp_path, model_folder, benchmarks, arguments, message):
    monkeypatch.chdir(tmp_path)
    filled = [text.format(model=model_folder, tmp=tmp_path, bench=benchmarks) for text in arguments]
    with pytest.raises(ValueError, match=re.escape(message)):
        run(monkeypatch, *filled)


def test_tokenizer_of_another_model_is_refused(monkeypatch, tmp_path, model_folder, benchmarks):
    save_model(Llama(LlamaConfig(64, 16, 32, 1, 2, 2, 8, 700)), tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((model_folder / "tokenizer.json").read_bytes())
    arguments = ["--model", tmp_path, "--benchmark", f"medqa4={benchmarks / 'medqa4'}", "--out", tmp_path / "out"]
    with pytest.raises(ValueError, match="the tokenizer has 258 ids but the model 64"):
        run(monkeypatch, *arguments)


def test_command_line_error_is_one_line_and_exit_code_2(tmp_path):
    arguments = [sys.executable, "eval.py", "--model", str(tmp_path / "absent"), "--benchmark", "mcq=absent"]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
    remedy = "Give the benchmark's file or the folder that holds it"
    assert result.returncode == 2
    assert result.stderr == f"error: absent: no such file or folder. {remedy}\n"
