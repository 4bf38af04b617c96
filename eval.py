"""Benchmark scoring: top-token, few-shot, chain of thought (CoT) and self-consistency CoT.

python eval.py --model HF_DIR --benchmark medqa4=eval/medqa pubmedqa=eval/pubmedqa --shots 3 --out scores/letter
python eval.py --sc-cot                                   the newest run under runs/ on the demo benchmarks
python eval.py --rescore scores/cot/predictions.jsonl --out scores/again       no model needed
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from data.benchmarks import read_benchmark, read_shots
from data.questions import Question
from data.settings import parse, parse_assignment, run_command
from data.tokenizer import Tokenizer, load_tokenizer
from evaluation.picture import draw_scores
from evaluation.predictions import Prediction, decide, generated, read_predictions, scored, write_predictions
from evaluation.prompts import FittedPrompt, answer_text, build_prompt, choose_demonstrations, fit_prompt
from evaluation.report import make_report, require_same_questions, table, write_report
from evaluation.scoring import letter_targets, log_probabilities, text_targets
from model.generate import generate
from model.huggingface import load_model, resolve
from model.llama import Llama
from parallel.checkpoint import checkpoint_folders

RUNS, DEMO = Path("runs"), Path("demo")
SC_SAMPLES, SC_TEMPERATURE = 5, 0.8
"""Self-consistency as MEDITRON's paper has it: 5 branches at temperature 0.8 (arXiv 2311.16079, section 5)."""
MAX_NEW_TOKENS = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass
class Settings:
    model: str | None = None
    """A Hugging Face folder, or a run (its newest checkpoint is taken); without it the newest run under runs/."""
    benchmark: tuple[str, ...] = ()
    """NAME=PATH of each benchmark: medqa, medqa4, medmcqa, pubmedqa, mmlu-medical, mmlu, truthfulqa-medical, or
    mcq for your own; without it those of the demo world in demo/."""
    shots: int = 0
    """Demonstrations before each question, from the benchmark's training or dev file."""
    cot: bool = False
    """Generate one reasoned answer a question, greedily, and read the answer from it."""
    sc_cot: bool = False
    """Generate 5 reasoned answers a question at temperature 0.8 and take the majority of those that can be read."""
    score: Literal["letter", "text"] = "letter"
    """Without --cot and --sc-cot: compare log-probabilities of the option letters after the listed options, or of
    the option texts (per token) after the question alone."""
    limit: int | None = None
    """Questions of each benchmark, chosen by a hash of their ids; all without it."""
    seed: int = 1234
    """Chooses the demonstrations and seeds the generated answers."""
    max_new_tokens: int | None = None
    """Length of a generated answer in tokens; without it 1024, or half the model's context where that is less."""
    batch_tokens: int = 16384
    """Tokens in one forward pass when options are scored, and room of the key/value cache when answers are
    generated; lower it where memory runs out."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Number format of the weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    baseline: str | None = None
    """Folder of an earlier evaluation of the same questions: prints base -> continued with paired tests."""
    rescore: str | None = None
    """A predictions.jsonl whose saved texts or log-probabilities are read and voted on again, without a model."""
    out: str | None = None
    """Folder for predictions.jsonl, report.json, report.md and scores.png; without it scores/ and the mode.
    Files there are replaced."""


def main() -> int:
    """Score, write the report and print its table."""
    settings = parse(Settings, sys.argv[1:], program="eval.py", description="Score a model on medical benchmarks.")
    if settings.cot and settings.sc_cot:
        raise ValueError("--cot and --sc-cot exclude each other. Give one of them")
    for name, least in (("shots", 0), ("limit", 1), ("max_new_tokens", 1), ("batch_tokens", 1)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected {least} or more")
    mode = "sc-cot" if settings.sc_cot else "cot" if settings.cot else settings.score
    out = Path(settings.out or f"scores/{'rescored' if settings.rescore else mode}")
    if settings.baseline and Path(settings.baseline).resolve() == out.resolve():
        raise ValueError(f"--baseline {settings.baseline}: --out would replace it. Give another --out")
    baseline = read_predictions(Path(settings.baseline) / "predictions.jsonl") if settings.baseline else None
    run, predictions = rescore(Path(settings.rescore)) if settings.rescore else evaluate(settings, mode, out, baseline)
    report = make_report(run, predictions, baseline)
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(out / "predictions.jsonl", predictions)
    write_report(report, out)
    draw_scores(report, out / "scores.png")
    print(table(report))
    for name, score in report.benchmarks.items():
        if score.cut:
            print(f"{name}: prompts cut to the model's context: {score.cut}")
    print(f"written to {out}: report.md, report.json, scores.png, predictions.jsonl")
    return 0


def rescore(path: Path) -> tuple[dict[str, object], list[Prediction]]:
    """What an earlier evaluation was, and its predictions decided anew."""
    predictions = [decide(prediction) for prediction in read_predictions(path)]
    report = path.with_name("report.json")
    if not report.is_file():
        raise ValueError(f"{report}: no such file; it says how {path.name} was made. Keep both in one folder")
    try:
        run = json.loads(report.read_text(encoding="utf-8"))["run"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{report}: not the report of an evaluation ({error}); evaluate again") from None
    return run, predictions


def evaluate(
    settings: Settings, mode: str, out: Path, baseline: list[Prediction] | None
) -> tuple[dict[str, object], list[Prediction]]:
    """Load the model, ask it every question of every benchmark; after each, `out` has the predictions so far."""
    chosen = chosen_benchmarks(settings)
    questions = {name: _limited(read_benchmark(name, path), settings.limit) for name, path in chosen}
    demonstrations = {name: _demonstrations(questions[name], path, settings) for name, path in chosen}
    for name, asked in questions.items() if baseline else ():  # before the hours that the answers may take
        require_same_questions(name, asked, {row.id: row for row in baseline})
    folder = model_folder(settings.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = settings.dtype if settings.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=DTYPES[dtype], device=device)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids but the model {model.config.vocab_size}. "
            "They belong to different models; put the model's own tokenizer into the folder"
        )
    run = {"model": str(folder), "mode": mode, "shots": settings.shots, "seed": settings.seed, "limit": settings.limit,
           "dtype": dtype, "device": device, "torch": torch.__version__}  # fmt: skip
    size = f"{model.config.parameters:,} parameters"
    print(f"{folder}: {size}, {dtype} on {device}, mode {mode}, {settings.shots} shots", flush=True)
    predictions = []
    out.mkdir(parents=True, exist_ok=True)
    ask = answer_by_generation if mode in ("cot", "sc-cot") else answer_by_score
    for name, asked in questions.items():
        with tqdm(total=len(asked), desc=name, unit="question", mininterval=1.0) as bar:
            predictions += ask(model, tokenizer, asked, demonstrations[name], settings, bar.update)
        write_predictions(out / "predictions.jsonl", predictions)
    return run, predictions


def answer_by_score(
    model: Llama, tokenizer: Tokenizer, questions: list[Question], demonstrations: list[list[Question]],
    settings: Settings, progress: Callable[[int], object],
) -> list[Prediction]:  # fmt: skip
    """Predictions from the log-probabilities of each question's options."""
    fit = partial(_fit, model, tokenizer, limit=model.config.max_position_embeddings)
    by_text = settings.score == "text"
    fitted, targets = [], []
    for question, shots in zip(questions, demonstrations, strict=True):
        texts = question.options.values() if by_text else [answer_text(question, letter) for letter in question.options]
        fitted.append(fit(question, shots, settings.score, [f" {text}" for text in texts]))
        targets.append((text_targets if by_text else letter_targets)(fitted[-1]))
    sums = log_probabilities(model, targets, settings.batch_tokens, progress)
    predictions = []
    for question, prompt, values, places in zip(questions, fitted, sums, targets, strict=True):
        if by_text:
            values = [value / (len(place.ids) - place.start) for value, place in zip(values, places, strict=True)]
        predictions.append(scored(question, prompt.text, prompt.cut, values))
    return predictions


def answer_by_generation(
    model: Llama, tokenizer: Tokenizer, questions: list[Question], demonstrations: list[list[Question]],
    settings: Settings, progress: Callable[[int], object],
) -> list[Prediction]:  # fmt: skip
    """Predictions from one greedy, or 5 drawn, reasoned answers a question."""
    context = model.config.max_position_embeddings
    new_tokens = settings.max_new_tokens or min(MAX_NEW_TOKENS, context // 2)
    if new_tokens >= context:
        raise ValueError(f"--max-new-tokens {new_tokens}: the model's context is {context} tokens. Lower it")
    samples, temperature = (SC_SAMPLES, SC_TEMPERATURE) if settings.sc_cot else (1, 0.0)
    fitted = [
        _fit(model, tokenizer, question, shots, "cot", [""], limit=context - new_tokens)
        for question, shots in zip(questions, demonstrations, strict=True)
    ]
    eos = model.config.eos_token_id
    continuations = generate(
        model, [prompt.ids for prompt in fitted], samples, temperature=temperature, max_new_tokens=new_tokens,
        stop_ids=(tokenizer.eos_id, *(eos if isinstance(eos, tuple) else (eos,))),
        seeds=[[_seed(settings.seed, question.id, sample) for sample in range(samples)] for question in questions],
        cache_tokens=settings.batch_tokens, finished=partial(_next_question_begins, tokenizer), progress=progress,
    )  # fmt: skip
    return [
        generated(question, prompt.text, prompt.cut, [tokenizer.decode(ids) for ids in texts])
        for question, prompt, texts in zip(questions, fitted, continuations, strict=True)
    ]


def _fit(
    model: Llama, tokenizer: Tokenizer, question: Question, shots: list[Question], form: str, continuations: list[str],
    *, limit: int,
) -> FittedPrompt:  # fmt: skip
    return fit_prompt(build_prompt(question, shots, form), continuations, limit, tokenizer)


def _next_question_begins(tokenizer: Tokenizer, tokens: list[int]) -> bool:
    """A base model that has answered goes on to write the next question, which the extraction would cut off again."""
    return "\nQuestion:" in tokenizer.decode(tokens[-16:])


def _seed(seed: int, question: str, sample: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{question}\n{sample}".encode()).digest()[:8], "big")


def _demonstrations(questions: list[Question], path: Path, settings: Settings) -> list[list[Question]]:
    shots = read_shots(questions[0].benchmark, path) if settings.shots else []
    return [choose_demonstrations(question, shots, settings.shots, settings.seed) for question in questions]


def _limited(questions: list[Question], limit: int | None) -> list[Question]:
    if limit is None or limit >= len(questions):
        return questions
    chosen = sorted(questions, key=lambda question: hashlib.sha256(question.id.encode()).digest())[:limit]
    kept = {question.id for question in chosen}
    return [question for question in questions if question.id in kept]


def chosen_benchmarks(settings: Settings) -> list[tuple[str, Path]]:
    """(name, path) of `--benchmark`, else of the demo world's `benchmarks.json`, whose paths start at its folder."""
    if settings.benchmark:
        given = [parse_assignment(text, "--benchmark") for text in settings.benchmark]
        if len(dict(given)) < len(given):
            raise ValueError("--benchmark: a name is given twice. Score each benchmark once")
        return given
    listing = DEMO / "benchmarks.json"
    if not listing.is_file():
        remedy = "Give --benchmark NAME=PATH, or write the demo world: python -m data demo demo"
        raise ValueError(f"{listing}: no such file. {remedy}")
    return [(name, DEMO / path) for name, path in json.loads(listing.read_text(encoding="utf-8")).items()]


def model_folder(given: str | None) -> Path:
    """The Hugging Face folder of `--model`: itself, or a run's newest whole checkpoint; without it the newest run's."""
    if given is None:
        runs = [path for path in RUNS.iterdir() if checkpoint_folders(path)] if RUNS.is_dir() else []
        if not runs:
            raise ValueError(f"{RUNS}/: no run with a checkpoint. Give --model HF_DIR or train first: python train.py")
        newest = max(runs, key=lambda path: (checkpoint_folders(path)[-1].stat().st_mtime, path.name))
        return checkpoint_folders(newest)[-1]
    return resolve(given)


if __name__ == "__main__":
    run_command(main)
