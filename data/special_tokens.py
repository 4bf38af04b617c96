"""MEDITRON's special tokens (arXiv 2311.16079, section 2): what marks references, captions and formulas in papers.

A paper that itself prints `[table]` must not become the token. So readers write tokens with a character that no text
has, `[\ufdd0table]`; what they read is kept free of it (`without_marks`), and `spell`, after everything that changes a
text, takes the bracket of a printed `[table]` apart and then makes `[table]` of `[\ufdd0table]`.
"""

import re
from collections import Counter

SPECIAL_TOKENS = (
    "[bib_ref]",
    "[/bib_ref]",
    "[fig_ref]",
    "[/fig_ref]",
    "[bib]",
    "[/bib]",
    "[fig]",
    "[/fig]",
    "[table]",
    "[/table]",
    "[formula]",
    "[/formula]",
)
"""In the order in which they are added to a tokenizer. `[bib]` is reserved: bibliographies are not part of the text."""

MARK = "\ufdd0"
"""Behind the first bracket of a token that a reader wrote, so that rules about brackets see one there. Unicode's
noncharacters are for such use inside a program; a text that is passed on has none."""
_PRINTED = re.compile(rf"(\[(?:{'|'.join(re.escape(token[1:-1]) for token in SPECIAL_TOKENS)}))\]")
_INVISIBLE = "\u200b"
"""A zero width space, which cleaning takes out. In a mark's place until then: spans of a text are counted in
characters."""


def opening(kind: str) -> str:
    """The first token of a kind (`bib_ref`, `fig`, ...) with the mark that only `spell` takes out."""
    assert f"[{kind}]" in SPECIAL_TOKENS
    return f"[{MARK}{kind}]"


def closing(kind: str) -> str:
    """The last token of a kind, marked too."""
    return opening(kind).replace(MARK, f"{MARK}/")


def enclose(kind: str, text: str) -> str:
    """`text`, which may be empty, between the opening and the closing token of a kind, both marked."""
    return f"{opening(kind)} {text} {closing(kind)}" if text else f"{opening(kind)} {closing(kind)}"


def without_marks(text: str, notes: Counter[str]) -> str:
    """`text` as it was read, in which nothing may look like a token of ours: every mark, counted in `notes`, becomes an
    invisible character."""
    if MARK not in text:
        return text
    notes["noncharacters U+FDD0 taken out"] += text.count(MARK)
    return text.replace(MARK, _INVISIBLE)


def unmarked(text: str) -> str:
    """`text` with the tokens in it as they are spelled, and what is printed like one as it is printed."""
    return text.replace(MARK, "")


def spell(text: str) -> str:
    """A finished text as it is kept: only what `enclose` wrote is spelled like a token.

    What is printed like one gets a blank before its last bracket, `[table ]`: a tokenizer looks for a token's very
    characters, and a blank is the one thing that can be added without adding a word or a sign to the text.
    """
    return unmarked(_PRINTED.sub(r"\1 ]", text) if "[" in text else text)
