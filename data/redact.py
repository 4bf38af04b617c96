"""Takes e-mail addresses, telephone numbers, web addresses and medical record numbers out of texts.

This is no de-identification: names, places and dates stay. The patterns would rather miss one than touch a dose, a
range, a trial number or a p value.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from data.special_tokens import MARK

Span = tuple[int, int]

_EMAIL = re.compile(
    r"(?<![\w.+@-])[A-Za-z0-9][\w.+-]*(?:@| ?(?:\(at\)|\[at\]) ?)"
    r"(?:(?:[A-Za-z0-9-]+\.)+(?:com|org|net|edu|gov|mil|int|info|biz|COM|ORG|NET|EDU|GOV)"
    r"|(?:[a-z0-9-]+\.)+[a-z]{2}|(?:[A-Z0-9-]+\.)+[A-Z]{2})(?![\w@-])"
)
"""`Cipro@PAA/Dex` and `90Y@PVA.in vitro` are materials: a domain ends in one of the old names, or in a country's two
letters in the case of the rest."""
_AT = ("@", "(at)", "[at]")
_URL = re.compile(
    r"(?:\b(?:https?|ftp)://|\bwww\.(?=[\w-]+\.))[^\s<>\"“”|]+"
    r"|(?<![\w@./-])(?:[a-z0-9-]+\.)+(?:com|org|net|edu|gov|io|eu|uk|de|fr|ch)/[^\s<>\"“”|]*",
    re.IGNORECASE,
)
_MAY_BE_URL = re.compile(r"://|[Ww][Ww][Ww]\.|\.(?:com|org|net|edu|gov|io|eu|uk|de|fr|ch)/")
_BRACKETS = ("()", "[]", "{}")
_NO_MORE = r"(?![\w/%]|[.,:–-]\d)"
_PHONE = re.compile(
    r"(?<![\w.,+/±-])(?:"
    r"\+\d{1,3}[ .-]?(?:\(0?\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"  # +44 20 7946 0958
    r"|(?:1[-. ])?\([2-9]\d{2}\) ?[2-9]\d{2}[-. ]\d{4}"  # (555) 234-5678
    r"|(?:1-)?[2-9]\d{2}-[2-9]\d{2}-\d{4}"  # 1-800-555-0199
    r"|(?:(?<!\d )(?:\(0\d{1,4}\)[ -]?\d{3,4}[ -]?\d{3,4}"  # (020) 7946 0958
    r"|0[1-9]\d[ -]\d{4}[ -]\d{4}|0[1-9]\d\d[ -]\d{3}[ -]\d{3,4}"  # 020 7946 0958, 0800 123 4567
    r")(?! \d))"
    r")" + _NO_MORE
)
_LABELLED_PHONE = re.compile(
    r"\b(?:tel|telephone|phone|mobile|fax)(?:\s+(?:number|no\.?))?"
    r"(?:\s*[.:]+\s*|\s+(?!(?:19|20)\d\d\b)(?=(?:[ ()/-]*\d){9}))"  # a year is no number to call, nor is "phone 12"
    r"(\+?\(?\d[\d ()/-]{5,18}\d)" + _NO_MORE,
    re.IGNORECASE,
)
_THOUSANDS = re.compile(r"\+\d{1,3}(?:[ .]\d{3})+")
"""`+120 000 000`: an amount as much as a number to call."""
_RECORD_NUMBER = re.compile(
    r"\b(?:MRN|(?:medical|hospital|patient|health)\s+record\s+(?:number|no\.?|#)|hospital\s+(?:number|no\.)"
    r"|patient\s+(?:ID|identifier|identification\s+number)|NHS\s+(?:number|no\.?))\s*(?:is\s+|[:#]\s*)?"
    r"([A-Z]{0,3}-?\d(?:[ -]?\d){4,11})" + _NO_MORE,
    re.IGNORECASE,
)
_DIGITS = re.compile(r"\d\d")
_MAY_BE_PHONE = re.compile(r"\+\d|\((?:[2-9]\d\d|0\d{1,4})\)[ -]?\d|\d\d\d-\d\d\d-\d|0[1-9]\d\d?[ -]\d{3}")
_PHONE_LABELS = ("tel", "phone", "mobile", "fax")
_RECORD_LABELS = ("mrn", "record", "hospital n", "patient id", "nhs")


def _emails(text: str) -> Iterator[Span]:
    return (found.span() for found in _EMAIL.finditer(text)) if any(sign in text for sign in _AT) else iter(())


def _urls(text: str) -> Iterator[Span]:
    """Without the full stop or the bracket that belongs to the sentence around, or a special token that follows."""
    for found in _URL.finditer(text) if _MAY_BE_URL.search(text) else ():
        address, _, _ = found.group().partition(f"[{MARK}")
        while address[-1] in ".,;:!?'’*" or any(
            address[-1] == closing and address.count(closing) > address.count(opening) for opening, closing in _BRACKETS
        ):
            address = address[:-1]
        yield found.start(), found.start() + len(address)


def _phones(text: str) -> Iterator[Span]:
    spans = [found.span(1) for found in _LABELLED_PHONE.finditer(text)] if _holds(text, _PHONE_LABELS) else []
    for found in _PHONE.finditer(text) if _MAY_BE_PHONE.search(text) else ():
        digits = sum(map(str.isdecimal, found.group()))
        if 9 <= digits <= 15 and not _THOUSANDS.fullmatch(found.group()):
            spans.append(found.span())
    end = 0
    for span in sorted(spans):
        if span[0] >= end:
            yield span
            end = span[1]


def _record_numbers(text: str) -> Iterator[Span]:
    return (found.span(1) for found in _RECORD_NUMBER.finditer(text)) if _holds(text, _RECORD_LABELS) else iter(())


def _holds(text: str, labels: tuple[str, ...]) -> bool:
    """Whether one of the (lower-case) labels and a number stand in `text`: what is tried before the slow patterns."""
    lowered = text.lower()
    return any(label in lowered for label in labels) and _DIGITS.search(text) is not None


_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "url": _urls,
    "mrn": _record_numbers,
    "phone": _phones,
}
"""In the order in which they are applied: an address may hold what looks like a number."""
KINDS = tuple(_FINDERS)


class Redactor:
    """Replaces each found one by its kind in brackets: `[email]`, `[url]`, `[mrn]`, `[phone]`."""

    def __init__(self, kinds: Sequence[str]):
        """ValueError names the kinds there are."""
        unknown = sorted(set(kinds).difference(KINDS))
        if unknown:
            raise ValueError(f"--redact: no kind {', '.join(unknown)}; choose from {', '.join(KINDS)}")
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)

    def redact(self, text: str, counts: Counter[str]) -> str:
        """`text` without them; each is counted in `counts` as `redacted KIND`."""
        for kind in self.kinds:
            spans = list(_FINDERS[kind](text))
            if spans:
                counts[f"redacted {kind}"] += len(spans)
                parts, end = [], 0
                for first, last in spans:
                    parts += [text[end:first], f"[{kind}]"]
                    end = last
                text = "".join(parts) + text[end:]
        return text


def parse_kinds(text: str) -> tuple[str, ...]:
    """The kinds named in `email,phone`, in the order they are applied; () for "". ValueError names the ones there
    are."""
    return Redactor([kind.strip() for kind in text.split(",") if kind.strip()]).kinds
