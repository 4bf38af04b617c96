"""Tokenizers against the libraries themselves: sentencepiece, tokenizers and transformers.AutoTokenizer."""

import gzip
import hashlib
import json
import random
import shutil
import struct

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from data.tokenizer import load_tokenizer

MODELS = ("model/stories260K/tokenizer.model", "model/llama2_tokenizer.model")
LITERAL_SPECIALS = ("</s>", "a</s>b <s> <unk>", "<s>", "<|end_of_text|>", "x <|begin_of_text|><|end_of_text|> y")


@pytest.fixture(scope="module")
def abstracts(assets):
    """1,000 abstracts of the MEDLINE file."""
    texts = []
    with gzip.open(assets / "medline" / "pubmed21n1298.first4000.xml.gz") as file:
        for _, citation in etree.iterparse(file, tag="PubmedArticle"):
            text = " ".join("".join(part.itertext()) for part in citation.iter("AbstractText"))
            texts += [text] if text else []
            citation.clear()
            if len(texts) == 1000:
                return texts
    raise AssertionError(f"only {len(texts)} abstracts")


def byte_level_tokenizer(path, *, special=True):
    """A byte-level BPE tokenizer.json like Llama 3's."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["aspirin and heparin and warfarin"] * 5, trainer)
    markers = [tokenizers.AddedToken(text, special=special) for text in ("<|begin_of_text|>", "<|end_of_text|>")]
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(markers)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(path))
    return path


def specials_of(tokenizer):
    return {tokenizer.bos_id, tokenizer.eos_id}


@pytest.mark.parametrize("model", MODELS)
def test_sentencepiece_ids_are_the_library_s(assets, abstracts, model):
    tokenizer = load_tokenizer(assets / model)
    library = sentencepiece.SentencePieceProcessor(model_file=str(assets / model))
    assert tokenizer.encode_batch(abstracts[:200]) == library.encode(abstracts[:200])
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, library.piece_size())
    assert tokenizer.decode([1, *tokenizer.encode(abstracts[0]), 2]) == abstracts[0]
    assert tokenizer.sha256 == hashlib.sha256((assets / model).read_bytes()).hexdigest()


@pytest.mark.parametrize("beside_a_model", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_autotokenizer_of_a_saved_folder_gives_our_ids(assets, abstracts, model, beside_a_model, tmp_path):
    tokenizer = load_tokenizer(assets / model)
    tokenizer.save(tmp_path)
    if beside_a_model:  # transformers chooses the class by config.json too
        shutil.copy(assets / "model" / "stories260K" / "config.json", tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    spaces = ["", " ", "  dose", "5  mg\n\n\tq.d.", "a" + " " * 37 + "b", "====___---", "▁x", "µ ± \u2009 \U0001f489"]
    texts = abstracts + spaces
    ours = [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(texts)]
    differing = [text for text, a, b in zip(texts, ours, theirs(texts)["input_ids"], strict=True) if a != b]
    assert not differing
    assert theirs.bos_token_id == tokenizer.bos_id
    assert theirs.eos_token_id == tokenizer.eos_id
    assert theirs.decode(ours[0], skip_special_tokens=True) == abstracts[0]


@pytest.mark.parametrize("model", MODELS)
def test_written_tokenizer_json_equals_sentencepiece_on_runs_of_pieces(assets, model, tmp_path):
    tokenizer = load_tokenizer(assets / model)
    tokenizer.save(tmp_path)
    written = load_tokenizer(tmp_path / "tokenizer.json")
    generator = random.Random(0)
    pieces = [tokenizer.token(index).replace("▁", " ") for index in range(259, tokenizer.vocab_size)]
    texts = ["".join(generator.choices(pieces, k=generator.randrange(1, 15))) for _ in range(1500)]
    texts += [
        "".join(generator.choice(" =-_.*#\n0a") * generator.randrange(1, 40) for _ in range(5)) for _ in range(500)
    ]
    assert written.encode_batch(texts) == tokenizer.encode_batch(texts)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_written_tokenizer_json_equals_sentencepiece_on_any_text(tiny_pair, text):
    ours, written = tiny_pair
    assert written.encode(text) == ours.encode(text)


@pytest.fixture(scope="module")
def tiny_pair(tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    load_tokenizer(tiny_tokenizer).save(folder)
    return load_tokenizer(tiny_tokenizer), load_tokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize("text", LITERAL_SPECIALS)
def test_text_that_looks_like_a_special_token_stays_text(tiny_pair, text, tmp_path):
    for tokenizer in (*tiny_pair, load_tokenizer(byte_level_tokenizer(tmp_path / "tokenizer.json"))):
        ids = tokenizer.encode(text)
        assert not specials_of(tokenizer) & set(ids)
        assert tokenizer.decode(ids) == text


def test_byte_level_tokenizer_json(tmp_path):
    path = byte_level_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(path)
    library = tokenizers.Tokenizer.from_file(str(path))
    library.no_truncation()  # a stored truncation would cut documents
    text = "warfarin and heparin, 5 µg " * 4
    assert tokenizer.encode(text) == library.encode(text).ids
    assert len(tokenizer.encode(text)) > 8
    assert tokenizer.vocab_size == library.get_vocab_size()
    assert tokenizer.token(tokenizer.bos_id) == "<|begin_of_text|>"
    assert tokenizer.token(tokenizer.eos_id) == "<|end_of_text|>"
    tokenizer.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs(text, truncation=False)["input_ids"] == tokenizer.encode(text)


def test_saved_copy_has_the_same_identity(tiny_tokenizer, tmp_path):
    own_name = tmp_path / "my_tokenizer.model"
    shutil.copy(tiny_tokenizer, own_name)
    tokenizer = load_tokenizer(own_name)
    tokenizer.save(tmp_path / "once")
    load_tokenizer(tmp_path / "once").save(tmp_path / "twice")
    again = load_tokenizer(tmp_path / "twice")
    assert again.sha256 == tokenizer.sha256
    assert again.path.name == "tokenizer.model"
    files = [sorted((path.name, path.read_bytes()) for path in (tmp_path / n).iterdir()) for n in ("once", "twice")]
    assert files[0] == files[1]


def test_hugging_face_folder_is_copied_as_it_is(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    byte_level_tokenizer(source / "tokenizer.json")
    config = '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": {"content": "<|end_of_text|>"},\n'
    config += '  "eos_token": "<|end_of_text|>", "model_max_length": 77}'
    (source / "tokenizer_config.json").write_text(config)
    (source / "special_tokens_map.json").write_text("{}")
    (source / "config.json").write_text("{}")
    tokenizer = load_tokenizer(source)
    assert tokenizer.token(tokenizer.bos_id) == "<|end_of_text|>"
    tokenizer.save(tmp_path / "copy")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    assert copied == {name: (source / name).read_bytes() for name in names}


def test_unreadable_files_are_named(tmp_path, make_sentencepiece):
    with pytest.raises(ValueError, match=r"missing\.model: no such tokenizer"):
        load_tokenizer(tmp_path / "missing.model")
    with pytest.raises(ValueError, match=r"no tokenizer.model and no tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer.json: not a readable tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x00garbage")
    with pytest.raises(ValueError, match=r"tokenizer.model: not a readable SentencePiece model"):
        load_tokenizer(tmp_path)
    without_bos = make_sentencepiece(tmp_path / "without_bos.model", bos_id=-1)
    with pytest.raises(ValueError, match=r"without_bos.model: the tokenizer has no BOS"):
        load_tokenizer(without_bos)


def test_boundary_tokens_that_cannot_serve_are_refused(tmp_path):
    path = byte_level_tokenizer(tmp_path / "tokenizer.json", special=False)
    with pytest.raises(ValueError, match="no BOS and EOS known"):
        load_tokenizer(path)
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not marked special"):
        load_tokenizer(path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|gone|>"}))
    with pytest.raises(ValueError, match=r"'<\|gone\|>'.*not in the vocabulary"):
        load_tokenizer(path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config.json: not valid JSON"):
        load_tokenizer(path)


def with_pieces(model, pieces):
    """A serialized SentencePiece model with more (text, score) pieces: a repeated field may stand at the end."""
    for text, score in pieces:
        content = text.encode()
        message = b"\x0a" + bytes([len(content)]) + content + b"\x15" + struct.pack("<f", score)
        model += b"\x0a" + bytes([len(message)]) + message
    return model


@pytest.mark.parametrize("runs", [(2, 3), (2, 3, 5), (2, 4, 6, 7)])
def test_runs_of_spaces_of_one_score_are_joined_from_the_left(tiny_tokenizer, tmp_path, runs):
    """Llama 2 gives all runs of spaces the score -1e9; transformers' own conversion ranks them wrongly."""
    path = tmp_path / "runs.model"
    path.write_bytes(with_pieces(tiny_tokenizer.read_bytes(), [("▁" * length, -1e9) for length in runs]))
    tokenizer = load_tokenizer(path)
    tokenizer.save(tmp_path / "saved")
    written = load_tokenizer(tmp_path / "saved" / "tokenizer.json")
    texts = [" " * first + "fever" + " " * second + "7" for first in range(20) for second in range(20)]
    assert max(map(max, tokenizer.encode_batch(texts))) >= 310  # the new pieces are used
    assert written.encode_batch(texts) == tokenizer.encode_batch(texts)


def test_other_pieces_of_one_score_are_not_saved(tiny_tokenizer, tmp_path):
    path = tmp_path / "tied.model"
    path.write_bytes(with_pieces(tiny_tokenizer.read_bytes(), [("xy", -1e9), ("yx", -1e9)]))
    with pytest.raises(ValueError, match="its pieces 'xy' and 'yx' have one score"):
        load_tokenizer(path).save(tmp_path / "saved")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram", "byte_fallback": False, "vocab_size": 60}, "its type is not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalises text"),
        ({"remove_extra_whitespaces": True}, "spaces"),
        ({"user_defined_symbols": ["▁▁"]}, "user-defined pieces with spaces"),
    ],
)
def test_models_without_an_exact_equivalent_are_not_saved(make_sentencepiece, tmp_path, options, reason):
    path = make_sentencepiece(tmp_path / "other.model", **options)
    with pytest.raises(ValueError, match=rf"other.model: cannot be written.*{reason}"):
        load_tokenizer(path).save(tmp_path / "saved")
