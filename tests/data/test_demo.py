"""The demo world: reproducible, readable by the project's own readers, and honest by a check that can fail."""

import dataclasses
import gzip
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from data import curate, demo, tokenize
from data.benchmarks import read_benchmark, read_shots
from data.demo import formats, honesty, papers, replay
from data.demo.examinations import WORDINGS
from data.demo.wordings import QUESTIONS, STATEMENTS
from data.demo.world import RELATIONS, build_world
from data.demo_shards import ensure_demo_shards
from data.documents import read_documents
from data.settings import parse
from data.shards import Shards
from data.tokenizer import load_tokenizer

CONDITIONS, REPLAY = 24, 120
TESTED_FACTS = CONDITIONS // 2 * len(RELATIONS)


@pytest.fixture(scope="module")
def settings() -> demo.Settings:
    return demo.Settings(conditions=CONDITIONS, replay=REPLAY, vocabulary=700)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, settings) -> Path:
    out = tmp_path_factory.mktemp("demo") / "world"
    demo.write_demo(out, settings)
    return out


@pytest.fixture(scope="module")
def corpus(folder) -> Path:
    out = folder.parent / "corpus"
    assert curate.run(curate.Settings(**demo.curation(folder), out=str(out))) == 0
    return out


@pytest.fixture(scope="module")
def documents(corpus) -> dict[str, list[dict]]:
    return {
        source.name: [document for file in sorted(source.glob("*.jsonl.zst")) for document in read_documents(file)]
        for source in sorted(corpus.iterdir())
        if list(source.glob("*.jsonl.zst"))
    }


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_one_seed_gives_the_same_bytes_and_another_seed_another_world(folder, settings, tmp_path):
    demo.write_demo(tmp_path / "again", settings)
    assert _bytes(tmp_path / "again") == _bytes(folder)
    other = build_world(2, CONDITIONS)
    assert not {c.name for c in other.conditions} & {c.name for c in build_world(1, CONDITIONS).conditions}


def test_a_folder_keeps_its_world(folder, settings, tmp_path):
    for other in ({"seed": 2}, {"questions": 3}):
        with pytest.raises(ValueError, match=r"another demo world.*delete"):
            demo.write_demo(folder, dataclasses.replace(settings, **other))
    # A run that stopped after its first file can be finished with its own settings only.
    (tmp_path / "world.json").write_bytes((folder / "world.json").read_bytes())
    with pytest.raises(ValueError, match="another demo world"):
        demo.write_demo(tmp_path, dataclasses.replace(settings, replay=3))
    assert _bytes(tmp_path).keys() == {"world.json"}
    demo.write_demo(tmp_path, settings)
    demo.write_demo(tmp_path, settings)
    assert _bytes(tmp_path) == _bytes(folder)


def test_half_of_the_conditions_are_tested_and_no_value_is_more_frequent_than_another():
    world = build_world(1, 150)
    assert len(world.tested) == len(world.taught) == 75
    assert len({c.name.split()[0] for c in world.conditions}) == 150
    for relation, uses in (("drug", 2), ("dose", 2), ("remedy", 3)):
        assert set(Counter(getattr(c, relation) for c in world.conditions).values()) == {uses}


def test_the_names_are_not_words_of_real_abstracts(assets):
    world = build_world(1, 150)
    with gzip.open(next((assets / "medline").glob("*.xml.gz")), "rt", encoding="utf-8") as file:
        real = set(re.findall(r"[a-z]{4,}", file.read().lower()))
    invented = {word.lower() for c in world.conditions for word in (c.name.split()[0], c.drug, c.remedy.split()[0])}
    assert len(real) > 20_000
    assert not invented & real


def test_curation_reads_every_written_document(documents, settings):
    world = build_world(settings.seed, CONDITIONS)
    questions = list(papers.question_pages(world, settings.questions, settings.exercises))
    pages = list(replay.general_pages(world, REPLAY))
    written = {
        "medline": CONDITIONS * settings.abstracts,
        "jats": len(papers.articles(world, papers.abstracts(world, settings.abstracts))),
        "guidelines": CONDITIONS,
        "questions": len(questions),
        "replay": len(pages),
    }
    assert {source: len(found) for source, found in documents.items()} == written


def test_curated_text_holds_the_facts_in_many_wordings_and_the_answers(documents, settings):
    world = build_world(settings.seed, CONDITIONS)
    stated = "\n".join(d["text"] for source in ("medline", "jats", "guidelines") for d in documents[source])
    asked = "\n".join(d["text"] for d in documents["questions"])
    for condition in world.conditions:
        for relation in RELATIONS:
            sentences = [t.format_map(vars(condition)) for t in STATEMENTS[relation]]
            assert sum(sentence in stated for sentence in sentences) >= 5
        row = f"| {condition.name} | {condition.drug} | {condition.dose} | {condition.remedy} |"
        assert row in stated
        questions = [
            t.format_map(vars(condition)) for t in QUESTIONS["dose"] if "{person}" not in t and "{age}" not in t
        ]
        found = sum(f"Question: {question}\nAnswer: {condition.dose}." in asked for question in questions)
        assert (found == 0) if condition.tested else (found >= 5)


def test_general_text_holds_no_medicine(documents, settings):
    world = build_world(settings.seed, CONDITIONS)
    general = "\n".join(f"{d['title']}\n{d['text']}" for d in documents["replay"]).lower()
    for condition in world.conditions:
        for value in (condition.name.split()[0], condition.drug, condition.dose, condition.remedy):
            assert value.lower() not in general


@pytest.mark.parametrize("name", list(WORDINGS))
def test_benchmarks_ask_each_tested_fact_once_with_balanced_letters(folder, settings, name):
    world = build_world(settings.seed, CONDITIONS)
    questions = read_benchmark(name, folder / "benchmarks" / name)
    values = {relation: {getattr(c, relation) for c in world.tested} for relation in RELATIONS}
    facts = []
    for question in questions:
        (condition,) = [c for c in world.tested if c.name in question.question]
        right = question.options[question.gold]
        (relation,) = [r for r in RELATIONS if getattr(condition, r) == right]
        assert len(set(question.options.values())) == 4
        assert set(question.options.values()) <= values[relation]
        facts.append((condition.name, relation))
    assert len(set(facts)) == len(questions) == TESTED_FACTS
    assert set(Counter(question.gold for question in questions).values()) == {TESTED_FACTS // 4}
    shots = read_shots(name, folder / "benchmarks" / name)
    assert shots
    assert not any(c.name in shot.question for shot in shots for c in world.tested)


def test_the_most_frequent_option_is_no_better_than_chance(tmp_path):
    demo.write_demo(tmp_path, demo.Settings(replay=0))
    world = build_world(1, 150)
    texts = [text for abstract in papers.abstracts(world, 8) for _, text in abstract.sections]
    texts += [formats.plain_text(page) for page in papers.question_pages(world, 14, 2)]
    whole = "\n".join(texts)
    count = {value: whole.count(value) for c in world.conditions for value in (c.drug, c.dose, c.remedy)}
    questions = [q for name in WORDINGS for q in read_benchmark(name, tmp_path / "benchmarks" / name)]
    right = sum(max(q.options, key=lambda letter: count[q.options[letter]]) == q.gold for q in questions)
    assert 0.19 < right / len(questions) < 0.31  # chance is 0.25; 3.5 standard errors of 675 questions


def test_tokenizer_has_llama_conventions_and_loses_nothing(folder):
    tokenizer = load_tokenizer(folder / "tokenizer" / "tokenizer.model")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 700)
    text = "A dose of 40 mg (p < 0.05),  twice; naïve 疑問 </s>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_curated_demo_is_honest(folder, corpus, capsys):
    assert demo.run(demo.Settings(out=str(folder), check=str(corpus))) == 0
    assert f"{3 * TESTED_FACTS} benchmark questions" in capsys.readouterr().out


def test_check_command_fails_on_a_corpus_that_gives_a_question_away(folder, corpus, monkeypatch, capsys):
    question = next(demo.benchmark_questions(folder))
    real = honesty.read_corpus
    monkeypatch.setattr(honesty, "read_corpus", lambda path: [*real(path), f"# Page\n\n{question}"])
    assert demo.run(demo.Settings(out=str(folder), check=str(corpus))) == 2
    assert question in capsys.readouterr().err


def test_check_of_a_folder_without_documents_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match="no documents"):
        demo.run(demo.Settings(out=str(folder), check=str(tmp_path)))


QUESTION = "If somebody suffers from Borlan fever, which drug should be given?"
CLEAN = (
    "Borlan fever is treated with Kisvex.\n\nVrondel rash is rarer.\n\n"
    "What is given in Vrondel rash? Somebody suffers; a drug should be given."
)


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ("In short, if somebody suffers from Vrondel rash, which drug helps is known.", "suffers from which drug"),
        ("if somebody\nsuffers FROM - which help", "if somebody suffers from which"),
        ("Doctors meet Borlan fever now and then. What helps?", "asked about"),
        ("He asked: \u201cWhat helps in BORLAN?\u201d", "asked about"),
        ("Question: the drug in Borlan fever", "asked about"),
        ("Q. The drug in Borlan fever", "asked about"),
        ("Q The drug in Borlan fever", "asked about"),
        ("_Answer_ for Borlan fever: Kisvex", "asked about"),
        ("## Question 3: Borlan fever, drug of choice", "asked about"),
        ("Question: What is the first choice here?\nAnswer: for Borlan fever, Kisvex.", "asked about"),
        ("What is the first choice here?\n\nFor Borlan fever, it is Kisvex.", "asked about"),
        ("A man has Borlan fever.\n\nWhat is the first choice here?", "asked about"),
        ("2. Name the drug given first in Borlan fever.\nAnswer: Kisvex.", "asked about"),
        ("Name the drug given first in Borlan fever.\n\nA: Kisvex.", "asked about"),
        ("Drug of choice in Borlan fever: Kisvex. Options: A) Kisvex B) Mulvex Answer: B", "asked about"),
        ("Give the drug of choice in Borlan fever, a) Kisvex b) Mulvex", "asked about"),
        ("For Borlans what drug?", "asked about"),
        ("if somebody suffers from Vrondel\u2019s rashes, which drug helps is known.", "suffers from which drug"),
        ("if somebody suffers from _Borlans_ which drug helps is known.", "suffers from which drug"),
        (f"An exam had it: {QUESTION[:-1]}.", "holds the question"),
    ],
)
def test_honesty_check_finds_planted_violations(planted, message):
    names = ["Borlan fever", "Vrondel rash"]
    clean = honesty.check([CLEAN], [QUESTION], names, names[:1])
    assert (clean.violations, clean.documents, clean.corpus_questions, clean.ngrams) == ([], 1, 1, 5)
    report = honesty.check([CLEAN, f"First paragraph.\n\n{planted}"], [QUESTION], names, names[:1])
    assert any(message in violation for violation in report.violations), report.violations


def test_a_question_too_short_to_compare_is_a_violation():
    report = honesty.check([CLEAN], ["Drug of choice in Borlan fever"], ["Borlan fever"], ["Borlan fever"])
    assert len(report.violations) == 1
    assert "too short" in report.violations[0]


def test_a_question_about_a_tested_condition_cannot_be_written():
    world = build_world(1, CONDITIONS)
    with pytest.raises(AssertionError, match="tested"):
        papers.Phrasebook(world.random("x")).question("drug", world.tested[0])


def test_world_size_is_checked():
    with pytest.raises(ValueError, match="--conditions 3"):
        build_world(1, 3)


def test_shards_on_first_use_are_not_made_of_a_corpus_that_gives_a_question_away(tmp_path, monkeypatch):
    name = build_world(demo.Settings.seed, demo.Settings.conditions).tested[0].name
    real = honesty.read_corpus
    monkeypatch.setattr(honesty, "read_corpus", lambda path: [*real(path), f"Which drug helps in {name}?"])
    with pytest.raises(ValueError, match=rf"'{name}' is asked about.*delete"):
        ensure_demo_shards(tmp_path / "demo")
    assert not (tmp_path / "demo" / "shards").exists()


def test_demo_script_and_first_use_run_the_same_settings(tmp_path, monkeypatch):
    """Each can then finish what the other began: equal settings are one run, whoever starts it."""
    monkeypatch.chdir(tmp_path)  # where no demo has been run yet
    script = (Path(__file__).parents[2] / "demo.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    wanted = [
        (module.Settings, parse(module.Settings, shlex.split(arguments), program=name, description=""))
        for name, module in (("demo", demo), ("curate", curate), ("tokenize", tokenize))
        for arguments in re.findall(rf"^run python -m data {name} (.*)$", script, re.MULTILINE)
        if "--check" not in arguments
    ]
    ran = []
    for module in (demo, curate, tokenize):
        monkeypatch.setattr(module, "run", lambda settings: ran.append((type(settings), settings)))
    monkeypatch.setattr(demo, "check_corpus", lambda out, corpus: honesty.Report(0, 0, 0, 0, []))
    ensure_demo_shards(Path("demo"))
    assert ran == wanted
    assert len(ran) == 3


def test_shards_are_made_on_first_use(tmp_path, monkeypatch, capsys):
    """What `train.py` without `--data` reads, by the functions of the three commands."""
    monkeypatch.chdir(tmp_path)
    shards = ensure_demo_shards(Path("demo"))
    assert ": 0 violations" in capsys.readouterr().out
    assert set(Shards(shards).sources) == {"medline", "jats", "guidelines", "questions", "replay"}
    before = (Path(shards) / "manifest.json").stat().st_mtime_ns
    assert ensure_demo_shards(Path("demo")) == shards
    assert (Path(shards) / "manifest.json").stat().st_mtime_ns == before
