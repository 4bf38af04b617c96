"""Which tokenizer makes the shards: gigatoken where it is checked, and the same bytes either way."""

import numpy as np
import pytest

from data import fast_tokenizer
from data import tokenize as tokenizing
from data.documents import write_documents
from data.special_tokens import SPECIAL_TOKENS
from data.tokenize import Settings, run, tokenize
from data.tokenizer import Encoded, load_tokenizer
from tests.data.test_tokenize import read_back, tree
from tests.data.test_tokenizer import byte_level_tokenizer

gigatoken = pytest.importorskip("gigatoken", reason="the optional fast tokenizer is not installed")


@pytest.fixture
def marked(corpus):
    """The corpus and a source with special tokens and the spellings of BOS and EOS."""
    (corpus / "papers").mkdir()
    texts = [f"Heparin {number} [bib_ref] Dose [/bib_ref] </s> <s> at [3]." for number in range(50)]
    records = [{"id": f"paper {number}", "text": text} for number, text in enumerate(texts)]
    write_documents(corpus / "papers" / "train-00000.jsonl.zst", records)
    return corpus


@pytest.fixture
def wrong_on(monkeypatch):
    """`wrong_on(text)`: from now on the fast tokenizer gives other ids to documents that hold it."""

    def start(wrong):
        real = fast_tokenizer.FastTokenizer.encode_arrays

        def encode(self, texts):
            tokens, offsets = real(self, texts)
            for number, text in enumerate(texts):
                if wrong in text:
                    tokens[offsets[number + 1] - 1] += 1
            return Encoded(tokens, offsets)

        monkeypatch.setattr(fast_tokenizer.FastTokenizer, "encode_arrays", encode)

    return start


@pytest.mark.parametrize("tokens", [(), SPECIAL_TOKENS], ids=["plain", "with tokens"])
def test_the_bytes_are_the_same_and_which_it_was_is_said(marked, tiny_tokenizer, tmp_path, capsys, tokens):
    fast = tokenize(marked, tiny_tokenizer, tmp_path / "fast", fast="on", special_tokens=tokens)
    assert f"gigatoken {fast_tokenizer.gigatoken_version()}: its ids of 162 documents" in capsys.readouterr().out
    slow = tokenize(marked, tiny_tokenizer, tmp_path / "slow", fast="off", special_tokens=tokens)
    assert "gigatoken" not in capsys.readouterr().out
    two = tokenize(marked, tiny_tokenizer, tmp_path / "two", workers=2, special_tokens=tokens)
    assert tree(fast.path) == tree(slow.path) == tree(two.path)


def test_other_ids_are_noticed_and_all_is_done_without(marked, tiny_tokenizer, tmp_path, capsys, wrong_on):
    slow = tokenize(marked, tiny_tokenizer, tmp_path / "slow", fast="off")
    wrong_on("Heparin 31 ")
    with pytest.raises(
        ValueError, match=r"--fast on: gigatoken gives other ids.*train-00000.*document paper 31; leave"
    ):
        tokenize(marked, tiny_tokenizer, tmp_path / "fast", fast="on")
    capsys.readouterr()
    auto = tokenize(marked, tiny_tokenizer, tmp_path / "fast")
    said = capsys.readouterr().out
    assert "not by gigatoken: gigatoken gives other ids, first seen in" in said and "document paper 31" in said
    assert tree(auto.path) == tree(slow.path)


def test_a_sample_is_checked_and_the_first_document_of_every_file(
    corpus, tiny_tokenizer, tmp_path, capsys, monkeypatch, wrong_on
):
    monkeypatch.setattr(tokenizing, "CHECKED_BYTES", 0)
    monkeypatch.setattr(tokenizing, "CHECKED_AT_LEAST", 1 << 64)
    tokenize(corpus, tiny_tokenizer, tmp_path / "first", fast="on")
    assert "its ids of 5 documents" in capsys.readouterr().out
    total = sum(file.stat().st_size for file in corpus.rglob("*.zst"))
    monkeypatch.setattr(tokenizing, "CHECKED_BYTES", total // 4)
    tokenize(corpus, tiny_tokenizer, tmp_path / "sample", fast="on", seed=3)
    checked = int(capsys.readouterr().out.split("its ids of ")[1].split()[0])
    assert 15 < checked < 45  # of 112
    wrong_on("Case 0.")
    with pytest.raises(ValueError, match="gigatoken gives other ids"):
        tokenize(corpus, tiny_tokenizer, tmp_path / "wrong", fast="on")


def test_where_it_cannot_be_used(corpus, tiny_tokenizer, tmp_path, capsys, monkeypatch):
    written = byte_level_tokenizer(tmp_path / "tokenizer.json")
    tokenize(corpus, written, tmp_path / "json")
    assert "not by gigatoken: gigatoken takes the place of SentencePiece models only" in capsys.readouterr().out
    monkeypatch.setattr(fast_tokenizer, "gigatoken_version", lambda: None)
    tokenize(corpus, tiny_tokenizer, tmp_path / "model")
    assert "not by gigatoken: gigatoken is not installed" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--fast on: gigatoken is not installed \(pip install"):
        tokenize(corpus, tiny_tokenizer, tmp_path / "on", fast="on")


def test_special_tokens_are_ids_only_when_asked_for(marked, tiny_tokenizer, tmp_path):
    base = load_tokenizer(tiny_tokenizer)
    settings = {"folder": str(marked), "tokenizer": str(tiny_tokenizer)}
    run(Settings(**settings, out=str(tmp_path / "plain")))
    run(Settings(**settings, out=str(tmp_path / "meditron"), special_tokens=()))
    run(Settings(**settings, out=str(tmp_path / "own"), special_tokens=("[3]",)))
    found = {}
    for name, added in (("plain", []), ("meditron", SPECIAL_TOKENS), ("own", ["[3]"])):
        shards = tokenizing.Shards(tmp_path / name)
        assert shards.vocab_size == base.vocab_size + len(added)
        tokenizer = load_tokenizer(shards.tokenizer_path)
        assert tokenizer.sha256 == shards.tokenizer_sha256
        found[name] = dict(read_back(shards)["papers", "train"])["paper 7"]
        bos, *ids, eos = found[name]
        assert (bos, eos) == (base.bos_id, base.eos_id) and not {bos, eos} & set(ids)  # </s> in the text is text
        assert tokenizer.decode(ids) == "Heparin 7 [bib_ref] Dose [/bib_ref] </s> <s> at [3]."
        assert [tokenizer.token(index) for index in ids if index >= base.vocab_size] == [
            token for token in added if token in ("[bib_ref]", "[/bib_ref]", "[3]")
        ]
    assert found["plain"] == [base.bos_id, *base.encode("Heparin 7 [bib_ref] Dose [/bib_ref] </s> <s> at [3]."), 2]
    with pytest.raises(ValueError, match="tokenizer differ"):
        run(Settings(**settings, out=str(tmp_path / "plain"), special_tokens=()))


def test_settings_unlike_the_curation_s_are_said(marked, tiny_tokenizer, tmp_path, capsys):
    (marked / "report.json").write_text("{}")
    settings = {"folder": str(marked), "tokenizer": str(tiny_tokenizer)}
    expected = [(True, None, "curated with --special-tokens; without it here [bib_ref]"), (True, (), None),
                (False, (), "curated without --special-tokens: text that happens"), (False, ("[a]",), None)]  # fmt: skip
    for number, (curated, tokens, said) in enumerate(expected):
        (marked / "run.json").write_text(f'{{"special_tokens": {str(curated).lower()}}}')
        run(Settings(**settings, out=str(tmp_path / str(number)), special_tokens=tokens))
        err = capsys.readouterr().err
        assert said in err if said else "warning" not in err


def test_command_line_names_tokens(marked, tiny_tokenizer, tmp_path):
    from data.settings import parse

    words = ["corpus", "--tokenizer", "x", "--special-tokens"]
    parsed = [parse(Settings, [*words[:count], *more], program="", description="") for count, more in
              ((3, []), (4, []), (4, ["[a]", "[b]"]), (4, ["--fast", "off"]))]  # fmt: skip
    assert [settings.special_tokens for settings in parsed] == [None, (), ("[a]", "[b]"), ()]
    assert [settings.fast for settings in parsed] == ["auto", "auto", "auto", "off"]


def test_arrays_with_boundaries_against_a_walk():
    from data.tokenize_passes import _with_boundaries

    encoded = Encoded(np.array([7, 8, 9, 10], np.uint32), np.array([0, 0, 3, 3, 4]))
    tokens, offsets = _with_boundaries(encoded, 1, 2, np.dtype(np.uint16))
    assert tokens.tolist() == [1, 2, 1, 7, 8, 9, 2, 1, 2, 1, 10, 2]
    assert offsets.tolist() == [0, 2, 7, 9, 12]
    assert tokens.dtype == np.uint16
