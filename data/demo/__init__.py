"""`python -m data demo`: a small fictional medicine as raw sources and benchmark files in their real formats.

OUT/sources/ what `python -m data curate` reads, OUT/sources.json its `--source` arguments (paths relative to OUT),
OUT/benchmarks/ and OUT/benchmarks.json {name: path relative to OUT}, OUT/tokenizer/tokenizer.model,
OUT/world.json the settings and all facts, with the tested half marked. One seed always gives the same bytes.
"""

import dataclasses
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from data.benchmarks import read_benchmark
from data.demo import formats, honesty, papers
from data.demo.examinations import WORDINGS, write_benchmarks
from data.demo.replay import general_pages
from data.demo.world import World, build_world
from data.settings import POSITIONAL

SOURCES = {
    "medline": "sources/medline",
    "jats": "sources/jats",
    "guidelines": "sources/guidelines",
    "guidelines:questions": "sources/questions",
    "jsonl:replay": "sources/replay",
}
"""`--source` arguments of `python -m data curate`, KIND[:NAME] to a path in the demo folder."""

BENCHMARKS = {name: f"benchmarks/{name}" for name in WORDINGS}
"""`--benchmark` arguments of `python -m data curate`, NAME to a path in the demo folder."""


@dataclasses.dataclass
class Settings:
    """Settings of `python -m data demo`."""

    out: str = dataclasses.field(default="demo", metadata=POSITIONAL)
    """Folder of the demo world."""
    seed: int = 1
    """Seed of everything: names, facts, wordings, options."""
    conditions: int = 150
    """Number of fictional conditions; every second one is tested. 150 give 225 questions a benchmark."""
    abstracts: int = 8
    """MEDLINE abstracts a condition, of four kinds."""
    questions: int = 14
    """Times each fact of a taught condition is asked in the corpus; there are sixteen wordings of each question."""
    exercises: int = 2
    """Times each fact of a taught condition is the subject of an exercise: options, reasoning and answer."""
    replay: int = 2400
    """Pages of general text; a page of questions follows every third."""
    vocabulary: int = 2048
    """Pieces of the tokenizer, the 256 bytes included. Small: most weights of a tiny model are its embeddings."""
    check: str | None = None
    """A folder of curated documents: write nothing, but prove that it gives no benchmark question of OUT away."""


def run(settings: Settings) -> int:
    """Write the demo world, or check a corpus against it. Returns the exit code."""
    out = Path(settings.out)
    if settings.check is not None:
        return _check(out, Path(settings.check))
    world = write_demo(out, settings)
    print(f"{out}: {len(world.conditions)} conditions, {len(world.tested)} of them tested")
    return 0


def write_demo(out: Path, settings: Settings) -> World:
    """Write the whole demo world into `out`; ValueError when another world is there."""
    world = build_world(settings.seed, settings.conditions)
    _claim(out, settings, world)
    abstracts = papers.abstracts(world, settings.abstracts)
    articles = papers.articles(world, abstracts)
    guidelines = papers.guidelines(world)
    questions = list(papers.question_pages(world, settings.questions, settings.exercises))
    replay = list(general_pages(world, settings.replay))

    formats.write_medline(out / SOURCES["medline"] / "demo24n0001.xml.gz", abstracts)
    formats.write_jats(out / SOURCES["jats"], articles)
    formats.write_guidelines(out / SOURCES["guidelines"], guidelines)
    formats.write_question_pages(out / SOURCES["guidelines:questions"], questions)
    formats.write_replay(out / SOURCES["jsonl:replay"] / "replay.jsonl", replay)
    texts = [text for abstract in abstracts for _, text in abstract.sections]
    texts += [formats.plain_text(page) for page in (*questions, *replay)]
    _train_tokenizer(out / "tokenizer" / "tokenizer.model", texts, settings.vocabulary)

    write_benchmarks(out / "benchmarks", world)
    _write_json(out / "sources.json", [f"{kind}={path}" for kind, path in SOURCES.items()])
    _write_json(out / "benchmarks.json", BENCHMARKS)
    return world


def _claim(out: Path, settings: Settings, world: World) -> None:
    """Write `world.json`, before any other file: a stopped run, too, must keep another world out."""
    values = dataclasses.asdict(settings)
    del values["out"], values["check"]
    content = {"settings": values, **dataclasses.asdict(world)}
    record = out / "world.json"
    if record.exists() and record.read_text(encoding="utf-8") != _json(content):
        raise ValueError(f"{out} holds another demo world (see {record}); choose another folder or delete this one")
    out.mkdir(parents=True, exist_ok=True)
    _write_json(record, content)


def _train_tokenizer(path: Path, texts: Iterable[str], vocabulary: int) -> None:
    """A SentencePiece BPE of Llama's kind (bytes for unknown characters, single digits, text left as it is)."""
    model = io.BytesIO()
    lines = (line for text in texts for line in text.splitlines() if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=vocabulary,
        character_coverage=1.0, byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def _write_json(path: Path, content: object) -> None:
    path.write_text(_json(content), encoding="utf-8")


def _json(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def curation(out: Path) -> dict[str, tuple[str, ...]]:
    """The `source` and `benchmark` settings with which `data.curate` curates the demo folder `out`."""
    return {
        "source": tuple(f"{kind}={out / path}" for kind, path in SOURCES.items()),
        "benchmark": tuple(f"{name}={out / path}" for name, path in BENCHMARKS.items()),
    }


def benchmark_questions(out: Path) -> Iterator[str]:
    """All questions of the benchmarks of a demo folder."""
    for name, path in json.loads((out / "benchmarks.json").read_text(encoding="utf-8")).items():
        yield from (question.question for question in read_benchmark(name, out / path))


def check_corpus(out: Path, corpus: Path) -> honesty.Report:
    """Compare the curated documents under `corpus` with the benchmarks of the demo folder `out`, and print a line."""
    conditions = json.loads((out / "world.json").read_text(encoding="utf-8"))["conditions"]
    report = honesty.check(
        honesty.read_corpus(corpus),
        list(benchmark_questions(out)),
        [c["name"] for c in conditions],
        [c["name"] for c in conditions if c["tested"]],
    )
    print(report)
    return report


def _check(out: Path, corpus: Path) -> int:
    report = check_corpus(out, corpus)
    for violation in report.violations[:10]:
        print(f"error: {violation}", file=sys.stderr)
    return 2 if report.violations else 0
