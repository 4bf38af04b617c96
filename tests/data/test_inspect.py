"""The table and the picture, against counts made by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from data import inspect as inspecting
from data import sampler
from data.documents import read_documents
from data.inspect import Settings, run
from data.shards import Shards
from data.tokenize import find_documents, tokenize
from tests.data.megatron_files import write_megatron


@pytest.fixture
def shards(corpus, tiny_tokenizer, tmp_path):
    return tokenize(corpus, tiny_tokenizer, tmp_path / "shards").path


def line_of(output, source, split):
    return next(line.split() for line in output.splitlines() if line.split()[:2] == [source, split])


def test_shards(shards, capsys):
    assert run(Settings(data=(str(shards),), verify=True)) == 0
    output = capsys.readouterr().out
    manifest = Shards(shards).manifest
    assert f"{len(manifest['files'])} files have the sha256" in output
    for source, splits in manifest["sources"].items():
        for split, counts in splits.items():
            cells = line_of(output, source, split)
            mean = f"{counts['tokens'] / counts['documents']:,.0f}"
            assert cells[2:5] == [f"{counts['documents']:,}", f"{counts['tokens']:,}", mean]
    assert "CC-BY-4.0 46, unknown 24" in output
    assert (shards / "inspect.png").read_bytes().startswith(b"\x89PNG")
    Shards(shards).verify()  # the picture does not hurt the shards


def test_documents(corpus, capsys):
    assert run(Settings(data=(str(corpus),))) == 0
    output = capsys.readouterr().out
    for source, splits in find_documents(corpus).items():
        for split, files in splits.items():
            lengths = [len(document["text"]) for file in files for document in read_documents(file)]
            assert line_of(output, source, split)[2:4] == [f"{len(lengths):,}", f"{sum(lengths):,}"]
    assert "characters" in output
    assert (corpus / "inspect.png").is_file()


def test_length_histogram_counts_every_document(shards, corpus):
    for rows in (inspecting.token_rows([shards]), inspecting.document_rows(corpus)):
        assert [int(row.lengths.sum()) for row in rows] == [row.documents for row in rows] == [70, 7, 30, 5]


def test_shares_give_epochs(shards, capsys):
    run(Settings(data=(str(shards),), share=("fever=0.5",), budget=100_000))
    output = capsys.readouterr().out
    counts = Shards(shards).manifest["sources"]
    for source in ("drugs", "fever"):
        epochs = 0.5 * 100_000 / counts[source]["train"]["tokens"]
        assert line_of(output, source, "train")[5:7] == ["0.5000", f"{epochs:.2f}"]
    assert "epochs are those of 100,000 training tokens" in output


def test_shares_of_documents_are_counted_in_characters(corpus, capsys):
    run(Settings(data=(str(corpus),), share=("fever=0.01",)))
    output = capsys.readouterr().out
    sizes = {
        source: sum(len(document["text"]) for file in splits["train"] for document in read_documents(file))
        for source, splits in find_documents(corpus).items()
    }
    total = sum(sizes.values())
    for source, share in (("fever", 0.01), ("drugs", 0.99)):
        assert line_of(output, source, "train")[5:7] == [f"{share:.4f}", f"{share * total / sizes[source]:.2f}"]
    assert f"epochs are those of {total:,} training characters" in output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": ("flu=0.5",)}, "'flu=0.5': expected NAME=SHARE with a NAME of drugs, fever"),
        ({"share": ("drugs=half",)}, "'half' is not a number"),
        ({"share": ("drugs=0.5", "fever=0.1")}, "sum to 0.6"),
        ({"budget": 0}, "--budget 0"),
    ],
)
def test_bad_settings_are_named(shards, settings, message):
    with pytest.raises(ValueError, match=message):
        run(Settings(data=(str(shards),), **settings))


def test_verify_finds_damage_and_needs_shards(shards, corpus):
    with pytest.raises(ValueError, match="--verify is for token shards"):
        run(Settings(data=(str(corpus),), verify=True))
    path = shards / "fever" / "train" / "ids-00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    command = [sys.executable, "-m", "data", "inspect", str(shards), "--verify"]
    root = Path(inspecting.__file__).resolve().parents[1]
    failed = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"error: {path}: wrong sha256")
    assert failed.stderr.count("\n") == 1


def test_what_training_is_given(shards, tmp_path, monkeypatch, capsys):
    """Single sources and a Megatron pair, with the shares that training would get."""
    monkeypatch.chdir(tmp_path)
    megatron_pair = tmp_path / "replay_text_document"
    write_megatron(megatron_pair, [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12]])
    given = (str(shards / "drugs"), str(shards / "fever"), f"{megatron_pair}.bin")
    assert run(Settings(data=given, share=(f"{megatron_pair.name}=0.01",), budget=1000)) == 0
    output = capsys.readouterr().out
    cells = line_of(output, megatron_pair.name, "train")
    assert cells[2:7] == ["3", "12", "4", "0.0100", f"{10 / 12:.2f}"]
    assert line_of(output, "drugs", "train") and line_of(output, "fever", "validation")
    assert Path("inspect.png").is_file()
    assert sampler.Sampler([(path, None) for path in given], 4, 0).train_tokens[megatron_pair.name] == 12


def test_what_is_given_twice_or_not_there_is_named(shards, tmp_path):
    with pytest.raises(ValueError, match="drugs: given twice"):
        run(Settings(data=(str(shards), str(shards / "drugs"))))
    with pytest.raises(ValueError, match="nowhere: no such folder of token shards"):
        run(Settings(data=(str(tmp_path / "nowhere"),)))


def test_verify_is_no_promise_about_megatron_pairs(shards, tmp_path):
    write_megatron(tmp_path / "replay", [[1, 2], [3]])
    with pytest.raises(ValueError, match="replay: --verify is for token shards; a Megatron pair has no hashes"):
        run(Settings(data=(str(shards), str(tmp_path / "replay.bin")), verify=True))
