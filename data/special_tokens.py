"""MEDITRON's special tokens (arXiv 2311.16079, section 2): what marks references, captions and formulas in papers."""

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


def enclose(kind: str, text: str) -> str:
    """`text`, which may be empty, between the opening and the closing token of a kind (`bib_ref`, `fig`, ...)."""
    opening, closing = f"[{kind}]", f"[/{kind}]"
    assert opening in SPECIAL_TOKENS
    return f"{opening} {text} {closing}" if text else f"{opening} {closing}"
