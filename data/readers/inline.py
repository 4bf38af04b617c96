"""Running text out of XML elements of MEDLINE and JATS: emphasis, super- and subscripts, formulas.

A superscript changes the number before it (10<sup>9</sup> is not 109), so it keeps its meaning in the text: Unicode
superscripts where they exist (10⁹, Ca²⁺).
"""

import html
import re
from collections.abc import Sequence

from lxml import etree

_RAISED_LETTERS = "abcdefghijklmnoprstuvwxyz"
_SUPERSCRIPT = str.maketrans("0123456789+-−–=()" + _RAISED_LETTERS, "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻⁼⁽⁾" + "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ")
_SUBSCRIPT = str.maketrans("0123456789+-−–=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₋₌₍₎")
_SCRIPTABLE = re.compile(r"(?:[0-9+\-−–=()/]|(?<![A-Za-z])[a-pr-z](?![A-Za-z]))+")
_NUMBER_AT_END = re.compile(r"(?<![A-Za-z0-9-])[0-9][0-9.,]*$")
_EXPONENT = re.compile(r"[+\-−–]?[0-9]*[.·][0-9]+|[\-−–].*[A-Za-z0-9\u0370-\u03ff].*")
_EULER_AT_END = re.compile(r"(?<![A-Za-z])e$")
_WORD_AT_END = re.compile(r"[^\W_][)\]]*$")
_NAME_AT_END = re.compile(r"[^\W_]{2}$")
_MARK = r"(?:[0-9]{1,3}(?:[-–][0-9]{1,3})?|[a-pr-z])"
_MARKS = re.compile(rf"{_MARK}(?:\s?,\s?{_MARK})+")
_LEVEL = re.compile(r"high|hi|low|lo|int|inter|mid|dim|bright|br|neg|pos", re.IGNORECASE)
_ALLELE = r"(?:[†‡]?\w+(?:-[^\W\d_]\w+)*|[+−–-])"
_GENOTYPE = re.compile(rf"{_ALLELE}(?:/{_ALLELE})*")
_RAISED_AS_IT_IS = re.compile(r"(?:st|nd|rd|th|TM|[®™©℠°ºª*†‡§¶#′″'\"]+)", re.IGNORECASE)
_ESCAPED_TWICE = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#[0-9]{2,6}|#x[0-9A-Fa-f]{2,5});")
_DOCUMENT_BODY = re.compile(r"\\begin\{document\}(.*?)\\end\{document\}", re.DOTALL)


def names(text: str) -> frozenset[str]:
    """A set of tag or template names, written as words."""
    return frozenset(text.split())


def squeeze(text: str) -> str:
    """White space runs to one blank, none at the ends. XML's line breaks and indents carry no meaning."""
    if "  " not in text and text.isprintable():  # no other white space is printable
        return text.strip(" ")
    return " ".join(text.split())


def local_name(element: etree._Element) -> str:
    """The tag without its namespace; "" for comments and processing instructions."""
    tag = element.tag
    if not isinstance(tag, str):
        return ""
    return tag.rpartition("}")[2] if tag[0] == "{" else tag


def superscript(text: str, before: str) -> str:
    """`text` raised, behind the text `before`; blanks at its ends stay.

    Numbers, signs and single small letters get Unicode's superscripts (10⁹, CD4⁺, Ca²⁺, xⁿ⁺¹, 3.1ᵃ), and so do lists of
    marks (ᵃ,ᵇ). Ordinals and levels of a marker are written as everyone types them (13th, CD25high). Anything else
    gets a `^` that keeps it apart from the number, word or bracket that it stands on: kg^0.75, e^(-kt), A^T, p53^GFP. A
    genotype on a name needs no parentheses (Bmp2^C/C); an exponent does (x^(A/B)).
    """
    inner = squeeze(text)
    if _SCRIPTABLE.fullmatch(inner) or (
        _MARKS.fullmatch(inner) and not (inner[0].isdigit() and _NUMBER_AT_END.search(before))
    ):
        raised = inner.translate(_SUPERSCRIPT)
    elif not inner or _RAISED_AS_IT_IS.fullmatch(inner):
        raised = inner
    elif _EXPONENT.fullmatch(inner) or _NUMBER_AT_END.search(before) or _EULER_AT_END.search(before):
        raised = f"^{inner}" if inner.replace(".", "").isalnum() else f"^({inner})"
    elif _WORD_AT_END.search(before) and inner[0] not in "/,;:.[" and not _LEVEL.fullmatch(inner):
        genotype = _GENOTYPE.fullmatch(inner) and ("/" not in inner or _NAME_AT_END.search(before))
        raised = f"^{inner}" if genotype else f"^({inner})"
    else:
        raised = inner
    return _with_outer_blanks(raised, text)


def subscript(text: str, before: str, after: str = "") -> str:
    """`text` lowered: CO2, Cmax and IC50 read as they are usually typed; next to a digit (the 3 of log₂3) Unicode's
    are used."""
    inner = squeeze(text)
    if before[-1:].isdigit() or (text[-1:].isdigit() and after[:1].isdigit()):
        inner = inner.translate(_SUBSCRIPT)
    return _with_outer_blanks(inner, text)


def _with_outer_blanks(inner: str, text: str) -> str:
    return " " * text[:1].isspace() + inner + " " * (bool(inner) and text[-1:].isspace())


def tex(source: str) -> str:
    """TeX of a formula between single dollars, without the document around it."""
    body = _DOCUMENT_BODY.search(source)
    return "$" + squeeze(body.group(1) if body else source).strip("$ ") + "$"


def mathml(element: etree._Element) -> str:
    """MathML as one line of text: fractions as (a)/(b), powers as a^(b), indices as a_(b), roots as sqrt(a)."""
    name = local_name(element)
    parts = [part for child in element if (part := mathml(child))]
    if name in ("annotation", "annotation-xml"):
        return ""
    if not len(element):
        return squeeze(element.text or "")
    if name == "mfrac" and len(parts) == 2:
        return f"{_group(parts[0])}/{_group(parts[1])}"
    if name in ("msup", "mover") and len(parts) == 2:
        return f"{parts[0]}^{_group(parts[1])}"
    if name in ("msub", "munder") and len(parts) == 2:
        return f"{parts[0]}_{_group(parts[1])}"
    if name in ("msubsup", "munderover") and len(parts) == 3:
        return f"{parts[0]}_{_group(parts[1])}^{_group(parts[2])}"
    if name == "msqrt":
        return f"sqrt({' '.join(parts)})"
    if name == "mroot" and len(parts) == 2:
        return f"root({parts[1]}, {parts[0]})"
    if name == "mfenced":
        return f"{element.get('open', '(')}{', '.join(parts)}{element.get('close', ')')}"
    if name == "mtr":
        return ", ".join(parts)
    if name == "mtable":
        return "[" + "; ".join(parts) + "]"
    return " ".join(parts)


def _group(text: str) -> str:
    return text if re.fullmatch(r"\w+", text) else f"({text})"


def simple_text(element: etree._Element) -> str:
    """The text of an element that holds only running text: emphasis dropped, scripts and MathML kept. One line."""
    if not len(element):
        return unescape(squeeze(element.text or ""))
    pieces: list[str] = []
    _gather(element, pieces)
    return unescape(squeeze("".join(pieces)))


def unescape(text: str) -> str:
    """Signs that the publisher escaped twice (`P &amp;lt; 0.05` in the file) as themselves."""
    return _ESCAPED_TWICE.sub(lambda match: html.unescape(match.group()), text) if "&" in text else text


def _gather(element: etree._Element, pieces: list[str]) -> None:
    """Append the text inside `element` to `pieces`: one list for all depths, so that a script sees what it follows."""
    pieces.append(element.text or "")
    for child in element:
        name = local_name(child)
        if name in ("sup", "sub"):
            inner: list[str] = []
            _gather(child, inner)
            text, before = "".join(inner), text_at_end(pieces)
            pieces.append(superscript(text, before) if name == "sup" else subscript(text, before, child.tail or ""))
        elif name == "math":
            pieces.append(f" {mathml(child)} ")
        elif name:
            _gather(child, pieces)
        pieces.append(child.tail or "")


def text_at_end(pieces: Sequence[str]) -> str:
    """The last two of `pieces` that are not empty, joined: what a script after them belongs to."""
    found: list[str] = []
    for piece in reversed(pieces):
        if piece:
            found.insert(0, piece)
        if len(found) == 2:
            break
    return "".join(found)
