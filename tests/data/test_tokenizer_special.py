"""Tokens added to a tokenizer: the ids of the libraries themselves, on texts as curation marks them up."""

import json
import random

import pytest
import sentencepiece
import transformers
from lxml import etree

from data.special_tokens import SPECIAL_TOKENS, enclose, spell
from data.tokenizer import load_tokenizer
from tests.data.test_tokenizer import LITERAL_SPECIALS, byte_level_tokenizer, specials_of

MARKED = (
    f"Heparin {spell(enclose('bib_ref', 'Low-dose heparin after surgery , Kakkar'))} at 5,000 U (p < 0.05).",
    spell(f"{enclose('fig', 'Figure 1: survival')}\n\n{enclose('table', 'Table 2: doses (mg)')}\n| a | b |"),
    "see[fig_ref]Figure 1[/fig_ref],  [formula]x^2[/formula]\n[bib_ref][/bib_ref] [bib_refs] [/bib_ref",
    " [table]",
    "[table] ",
    "[formula][formula]",
    "[fig_ref]é\u00a0µ \U0001f489[/fig_ref]",
)


def mixed_texts(count):
    """Texts of tokens, parts of tokens, spaces and words in any order."""
    source = random.Random(0)
    parts = [*SPECIAL_TOKENS, " ", "  ", "\n", "dose", "5 mg", "[", "]", "▁", "[bib_ref", "µ", "\U0001f489", "\0"]
    texts = ["".join(source.choices(parts, k=source.randrange(2, 9))) for _ in range(count)]
    return [text for text in texts if text not in SPECIAL_TOKENS]  # see `tokenizer_json_from_sentencepiece`


@pytest.fixture(params=["tiny", "model/llama2_tokenizer.model", "model/stories260K/tokenizer.model", "byte level"])
def base(request, tiny_tokenizer, tmp_path):
    if request.param == "byte level":
        return load_tokenizer(byte_level_tokenizer(tmp_path / "tokenizer.json"))
    assets = tiny_tokenizer if request.param == "tiny" else request.getfixturevalue("assets") / request.param
    return load_tokenizer(assets)


def test_new_ids_follow_the_vocabulary_and_the_old_ones_stay(base):
    tokenizer = base.with_tokens(SPECIAL_TOKENS)
    new = range(base.vocab_size, base.vocab_size + 12)
    assert tokenizer.vocab_size == base.vocab_size + 12
    assert [tokenizer.token(index) for index in new] == list(SPECIAL_TOKENS)
    assert [tokenizer.token(index) for index in range(base.vocab_size)] == [
        base.token(index) for index in range(base.vocab_size)
    ]
    for text in ("", " ", "Aspirin 5 mg [1], [fig 2]", "</s> <s>", "[bib_ref [/bib"):
        assert tokenizer.encode(text) == base.encode(text)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (base.bos_id, base.eos_id)


def test_spellings_become_the_ids(base):
    tokenizer = base.with_tokens(SPECIAL_TOKENS)
    for text in MARKED:
        ids = tokenizer.encode(text)
        found = [tokenizer.token(index) for index in ids if index >= base.vocab_size]
        spelled = [
            token for token in text.replace("[", "\n[").replace("]", "]\n").split("\n") if token in SPECIAL_TOKENS
        ]
        assert found == spelled
        assert tokenizer.decode(ids) == text
        assert not any(index >= base.vocab_size for index in base.encode(text))  # without them they are text


@pytest.mark.parametrize("text", LITERAL_SPECIALS)
def test_bos_and_eos_still_never_come_from_text(base, text):
    tokenizer = base.with_tokens(SPECIAL_TOKENS)
    ids = tokenizer.encode(f"[fig] {text} [/fig]")
    assert not specials_of(tokenizer) & set(ids)
    assert tokenizer.decode(ids) == f"[fig] {text} [/fig]"


def test_autotokenizer_of_the_saved_folder_gives_our_ids(base, tmp_path):
    tokenizer = base.with_tokens(SPECIAL_TOKENS)
    tokenizer.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    texts = [*MARKED, *mixed_texts(3000)]
    begin = [base.bos_id] if theirs("x")["input_ids"][0] == base.bos_id else []
    expected = theirs(texts, truncation=False)["input_ids"]
    for text, ids in zip(texts, expected, strict=True):
        assert begin + tokenizer.encode(text) == ids, text
    assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(base.vocab_size, base.vocab_size + 12))
    assert (theirs.bos_token_id, theirs.eos_token_id) == (base.bos_id, base.eos_id)
    assert theirs.decode(expected[0], skip_special_tokens=True) == MARKED[0]


def test_autotokenizer_on_real_papers(assets, tmp_path):
    """Paragraphs of articles with every citation marked."""
    tokenizer = load_tokenizer(assets / "model" / "llama2_tokenizer.model").with_tokens(SPECIAL_TOKENS)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    paragraphs = []
    for path in sorted((assets / "jats").rglob("*.nxml"))[:15]:
        for paragraph in etree.parse(path).iterfind(".//body//p"):
            for reference in paragraph.iterfind(".//xref"):
                reference.text = spell(enclose("bib_ref", "".join(reference.itertext())))
            paragraphs.append("".join(paragraph.itertext()))
    assert sum("[bib_ref]" in text for text in paragraphs) > 100
    expected = theirs(paragraphs)["input_ids"]
    assert [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(paragraphs)] == expected


def test_a_saved_tokenizer_is_the_same_again(base, tmp_path):
    tokenizer = base.with_tokens(SPECIAL_TOKENS)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.sha256 == tokenizer.sha256 != base.sha256
    assert again.encode_batch(MARKED) == tokenizer.encode_batch(MARKED)
    assert again.with_tokens(SPECIAL_TOKENS[:3]).sha256 == again.sha256
    more = again.with_tokens([*SPECIAL_TOKENS, "[dose]"])
    assert more.encode("[dose]")[-1] == base.vocab_size + 12
    assert more.extends(again) and more.extends(base) and again.extends(base) and base.extends(base)
    assert not base.extends(again)
    assert not base.with_tokens(["[dose]"]).extends(again)


def test_another_kind_of_tokenizer_extends_nothing(tiny_tokenizer, tmp_path):
    ours = load_tokenizer(tiny_tokenizer)
    ours.save(tmp_path)
    written = load_tokenizer(tmp_path / "tokenizer.json")
    assert not ours.extends(written) and not written.extends(ours)


def test_a_folder_s_own_files_stay_but_for_the_tokens(tmp_path):
    (tmp_path / "source").mkdir()
    byte_level_tokenizer(tmp_path / "source" / "tokenizer.json")
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "chat_template": "{{ 1 }}"}
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(config))
    load_tokenizer(tmp_path / "source").with_tokens(["[fig]"]).save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text()) == config
    assert load_tokenizer(tmp_path / "saved").encode("[fig]") == [load_tokenizer(tmp_path / "source").vocab_size]


def test_sentencepiece_alone_reads_the_model_file(tiny_tokenizer, tmp_path):
    tokenizer = load_tokenizer(tiny_tokenizer).with_tokens(SPECIAL_TOKENS)
    tokenizer.save(tmp_path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert library.encode(list(MARKED)) == tokenizer.encode_batch(MARKED)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [("", "must not be empty"), ("[a b]", "hold spaces"), ("a▁b", "hold spaces"), ("[a\n]", "hold spaces")],
)
def test_spellings_that_text_cannot_hold_are_refused(base, spelling, message):
    with pytest.raises(ValueError, match=message):
        base.with_tokens([spelling])


def test_spellings_of_the_vocabulary_are_refused(base):
    pieces = [base.token(index) for index in range(base.vocab_size)]
    ordinary = next(piece for piece in reversed(pieces) if piece.isalpha() and piece.isascii())
    for spelling in (base.token(base.bos_id), ordinary):
        with pytest.raises(ValueError, match="of the vocabulary already"):
            base.with_tokens([spelling])


@pytest.mark.parametrize("prefix", [True, False])
def test_a_model_trained_with_user_defined_pieces(make_sentencepiece, tmp_path, prefix):
    path = make_sentencepiece(
        tmp_path / "own.model", user_defined_symbols=["[fig]", "[/fig]", "[table]"], add_dummy_prefix=prefix
    )
    tokenizer = load_tokenizer(path)
    tokenizer.save(tmp_path / "saved")
    written = load_tokenizer(tmp_path / "saved" / "tokenizer.json")
    texts = [*MARKED[:2], *mixed_texts(2000), *(f"[fig] {text}" for text in LITERAL_SPECIALS)]
    assert written.encode_batch(texts) == tokenizer.encode_batch(texts)
