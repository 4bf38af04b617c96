"""The language of a text, judged on its words and letters: what a record says of itself is often the language of
another version (MEDLINE names the article's, not the abstract's).

Clear cases are decided by counting English function words. Only the others are shown to py3langid, which takes some
fifty times as long.
"""

import functools

from py3langid.langid import MODEL_FILE, LanguageIdentifier

ENGLISH_WORDS = frozenset((
    "the", "of", "and", "to", "with", "for", "was", "were", "by", "that", "from", "this", "are", "which", "these", "be",
    "is", "been", "have", "has", "between", "not", "at",
))  # fmt: skip
"""Function words that prose in other languages does not have, or seldom (as Dutch `of`, `is`, `was`)."""
SURELY_ENGLISH = 0.08
"""Share of function words. Real English abstracts have 0.085 to 0.45, abstracts in German, Spanish and Chinese up to
0.007."""
CANDIDATES = (
    "ar", "bg", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja",
    "ko", "lt", "lv", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip
"""The languages that medical literature is written in; py3langid chooses among these, not among its 140."""
SAMPLE = 500
"""Characters shown to py3langid, from the middle: titles and labels are often English where the text is not."""
SURE = 0.9
"""Probability below which py3langid's answer is not taken: what it gives for lists of names."""


def detect(text: str, english_share: float) -> str | None:
    """The two-letter code of `text`'s language, or None when it cannot be told; `english_share` of its words are among
    ENGLISH_WORDS."""
    if english_share >= SURELY_ENGLISH:
        return "en"
    start = max(0, (len(text) - SAMPLE) // 2)
    code, probability = _identifier().classify(text[start : start + SAMPLE])
    return code if probability >= SURE else None


@functools.cache
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(CANDIDATES)
    return identifier
