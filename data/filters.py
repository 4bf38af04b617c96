"""The rules by which a single document is dropped, each with its threshold and the reason for it.

The web's rules (Gopher, arXiv 2112.11446, table A1) drop 29.5 % of genuine PubMed abstracts, whose words are often
numbers and gene names. These thresholds stand beyond what genuine texts showed: 3,368 MEDLINE abstracts, 108 JATS
articles, 541 guideline pages, 106 Wikipedia and 122 WikiText articles. "Genuine" below means these.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data.counts import Counts
from data.documents import Document
from data.language import detect
from data.licences import license_class
from data.quality import (
    alphabetic_share,
    citation_density,
    contents_line_share,
    duplicate_line_share,
    duplicate_phrase_share,
    function_word_share,
    mean_word_length,
    ocr_noise_share,
    overlong_share,
    single_letter_share,
    symbol_share,
    top_pair_share,
    web_word_share,
)

_RETRACTED = frozenset(("retracted-publication", "retracted-article", "withdrawn-publication"))
_RETRACTED_TITLE = re.compile(
    r"\W*(?:retracted|withdrawn|removed)(?: (?:article|paper|publication|chapter))?\s?[:\]]", re.IGNORECASE
)
_NON_ARTICLES = frozenset((
    "published-erratum", "erratum", "corrigendum", "correction", "addendum", "retraction",
    "retraction-of-publication", "retraction-notice", "partial-retraction", "expression-of-concern", "bibliography",
    "directory", "portrait", "periodical-index", "index", "announcement", "books-received", "calendar",
    "advertisement", "table-of-contents", "toc", "issue-toc", "front-matter", "back-matter", "cover", "masthead",
))  # fmt: skip
"""MEDLINE's PublicationType and JATS's article-type names, lower case with hyphens. Letters, comments, editorials,
news, case reports and meeting abstracts are genuine text."""
_NON_ARTICLE_TITLE = re.compile(
    r"\W*(?:(?:publisher|author)(?:['’]s)? )?"
    r"(?:errat(?:um|a)|corrigend(?:um|a)|correction|addendum|retraction(?: note)?)(?: (?:to|for|of))?\s?:"
    r"|\W*(?:retraction|withdrawal) notice|\W*(?:editorial )?expression of concern",
    re.IGNORECASE,
)
_WITHOUT_BLANKS = frozenset(("zh", "ja", "th", "km", "lo", "my"))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What a rule looks at."""

    document: Document
    counts: Counts
    filters: "Filters"


@functools.lru_cache(1024)
def _type_name(kind: str) -> str:
    return kind.lower().replace(" ", "-")


def _types(document: Document) -> set[str]:
    return set(map(_type_name, document.types or ()))


def _says_retracted(document: Document) -> bool:
    return not _RETRACTED.isdisjoint(_types(document)) or bool(_RETRACTED_TITLE.match(document.title or ""))


def _is_retracted(candidate: _Candidate, _: float) -> bool:
    return _says_retracted(candidate.document)


def _is_no_article(candidate: _Candidate, _: float) -> bool:
    return not _NON_ARTICLES.isdisjoint(_types(candidate.document)) or bool(
        _NON_ARTICLE_TITLE.match(candidate.document.title or "")
    )


def _has_other_license(candidate: _Candidate, _: float) -> bool:
    wanted = candidate.filters.licences
    return bool(wanted) and license_class(candidate.document.license) not in wanted


def _is_other_language(candidate: _Candidate, _: float) -> bool:
    wanted, counts = candidate.filters.languages, candidate.counts
    return bool(wanted) and detect(counts.text, function_word_share(counts)) not in (None, *wanted)


def _lacks_function_words(candidate: _Candidate, limit: float) -> bool:
    return (
        candidate.filters.languages == ("en",)
        and candidate.counts.words >= 50
        and function_word_share(candidate.counts) < limit
    )


def _below(measure: Callable[[Counts], float]) -> Callable[[_Candidate, float], bool]:
    return lambda candidate, limit: measure(candidate.counts) < limit


def _above(measure: Callable[[Counts], float]) -> Callable[[_Candidate, float], bool]:
    return lambda candidate, limit: measure(candidate.counts) > limit


@dataclass(frozen=True)
class Rule:
    """A reason to drop a document.

    `threshold` is in `unit`, 0 where the rule has none; `fails(candidate, threshold)` says whether the document goes.
    """

    name: str
    threshold: float
    unit: str
    reason: str
    fails: Callable[[_Candidate, float], bool]


RULES = (
    Rule("empty", 0, "", "nothing is left after cleaning", lambda candidate, _: not candidate.document.text.strip()),
    Rule("too-short", 50, "characters, at least", "below are headings, stubs and leftovers of conversion",
         lambda candidate, limit: len(candidate.document.text) < limit),
    Rule("too-long", 5_000_000, "characters, at most", "about 1,700 printed pages; more is a dump of data",
         lambda candidate, limit: len(candidate.document.text) > limit),
    Rule("license", 0, "", "its class is not among those asked for with --licenses", _has_other_license),
    Rule("retracted", 0, "", "the type or the title says that the work was retracted", _is_retracted),
    Rule("non-article", 0, "", "errata, retraction notices, directories and tables of contents, by type or title",
         _is_no_article),
    Rule("language", 0, "", "the text itself is in no language asked for; in doubt it stays", _is_other_language),
    Rule("alphabetic-share", 0.4, "letters among visible characters, at least",
         "genuine: 0.66 and more (Gopher's 80 % of words cost 29.5 % of abstracts)", _below(alphabetic_share)),
    Rule("symbol-share", 0.2, "signs among visible characters, at most",
         "genuine: up to 0.13, in articles of tables; code and broken encodings have more", _above(symbol_share)),
    Rule("short-words", 2, "characters a word on average, at least",
         "genuine: 3.1 and more, a paragraph of statistics 2.3 (Gopher has 3); spaced-out letters have 1",
         _below(mean_word_length)),
    Rule("long-words", 10, "characters a word on average, at most", "genuine: up to 8.2; 10 is Gopher's",
         _above(mean_word_length)),
    Rule("single-letters", 0.3, "words of one letter among all, at most",
         "genuine: up to 0.17, in one text of 21 words 0.24", _above(single_letter_share)),
    Rule("overlong-words", 0.2, "characters in words of more than 30, at most",
         "genuine: up to 0.05, where sequences are printed; base64 and fused words have more",
         _above(overlong_share)),
    Rule("function-words", 0.01, "English function words among all, at least",
         "genuine: 0.018 and more, even lists of names; not judged under 50 words or where other languages are wanted",
         _lacks_function_words),
    Rule("duplicate-lines", 0.3, "characters in lines that stood before, at most",
         "genuine: up to 0.22 (Gopher's 0.2 costs a guideline)", _above(duplicate_line_share)),
    Rule("contents-page", 0.5, "lines ending in a page number, at most", "genuine: up to 0.30, in lists of events",
         _above(contents_line_share)),
    Rule("reference-list", 1, "volumes with pages and DOIs a hundred words, at most",
         "genuine: 0; 99 % of reference lists have 1.6 and more", _above(citation_density)),
    Rule("boilerplate-only", 0.12, "words of page margins among the different words, at most",
         "genuine: up to 0.04; cookie notices and log-in pages have 0.3 and more", _above(web_word_share)),
    Rule("top-pair", 0.25, "words in the most frequent pair of words, at most",
         "genuine: up to 0.19 (Gopher's 0.2 is too near)", _above(top_pair_share)),
    Rule("ocr-noise", 0.09, "broken words among all, at most",
         "genuine: up to 0.06, of gene names; a tenth of all letters misread gives 0.08 to 0.2",
         _above(ocr_noise_share)),
    Rule("duplicate-phrases", 0.3, "phrases of five words that stood before, at most",
         "genuine: up to 0.22 (Gopher's 0.15 costs a tenth of papers where their citations' titles are written out)",
         _above(duplicate_phrase_share)),
)  # fmt: skip
"""Every rule in the order in which they are tried: the cheap ones first."""
_BY_NAME = {rule.name: rule for rule in RULES}
PROFILES = {"biomedical": tuple(_BY_NAME), "none": ("empty", "too-short")}
"""The rules of each profile."""


@dataclass(frozen=True)
class Filters:
    """The rules of one curation, with their thresholds; `build` makes one from what a user says.

    `languages` are two-letter codes and `licences` classes of `data.licences`, both () for all.
    """

    limits: tuple[tuple[str, float], ...]
    languages: tuple[str, ...]
    licences: tuple[str, ...]

    @classmethod
    def build(
        cls,
        profile: str = "biomedical",
        overrides: Mapping[str, float | str] | None = None,
        languages: Sequence[str] = ("en",),
        licences: Sequence[str] = (),
    ) -> "Filters":
        """Raises ValueError for a profile, rule, threshold or language that does not fit, naming those there are.

        `overrides`: rule name to a threshold, "off", or "on" with its own threshold. Either of the others switches a
        rule on that the profile lacks.
        """
        if profile not in PROFILES:
            raise ValueError(f"unknown filter profile {profile!r}; choose from {', '.join(PROFILES)}")
        limits = {name: float(_BY_NAME[name].threshold) for name in PROFILES[profile]}
        for name, value in (overrides or {}).items():
            if name not in _BY_NAME:
                raise ValueError(f"unknown filter rule {name!r}; choose from {', '.join(_BY_NAME)}")
            rule = _BY_NAME[name]
            if value == "off":
                limits.pop(name, None)
            elif value == "on":
                limits[name] = float(rule.threshold)
            elif not rule.unit:
                raise ValueError(f"filter rule {name} has no threshold: expected on or off; found {value!r}")
            elif isinstance(value, str) or not value >= 0:
                raise ValueError(f"filter rule {name}: expected a number of 0 or more, on or off; found {value!r}")
            else:
                limits[name] = float(value)
        wanted = tuple(sorted({code.lower() for code in languages if code}))
        if "" in languages:
            wanted = ()
        unfit = sorted(_WITHOUT_BLANKS.intersection(wanted))
        if unfit and profile == "biomedical":
            raise ValueError(f"the biomedical filters count words between blanks, which {', '.join(unfit)} has not; "
                             "use the profile none")  # fmt: skip
        if licences and "license" not in limits and (overrides or {}).get("license") != "off":
            limits["license"] = 0.0
        ordered = tuple((name, limits[name]) for name in _BY_NAME if name in limits)
        return cls(ordered, wanted, tuple(licences))

    @property
    def digest(self) -> str:
        """A hash of everything that decides which documents go, but for the code."""
        return hashlib.sha256(repr((self.limits, self.languages, self.licences)).encode()).hexdigest()

    @property
    def drops_retracted(self) -> bool:
        """Whether the rule `retracted` is on."""
        return any(name == "retracted" for name, _ in self.limits)

    def is_retracted(self, document: Document) -> bool:
        """Whether the document says so, and such documents go."""
        return self.drops_retracted and _says_retracted(document)

    def failed(self, document: Document, counts: Counts) -> str | None:
        """The name of the first rule by which a cleaned document goes, or None; `counts` are those of its text."""
        candidate = _Candidate(document, counts, self)
        for name, limit in self.limits:
            if _BY_NAME[name].fails(candidate, limit):
                return name
        return None


def parse_overrides(texts: Sequence[str]) -> dict[str, float | str]:
    """`("top-pair=0.3", "language=off")` as what `Filters.build` takes. ValueError shows the form."""
    overrides: dict[str, float | str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        try:
            overrides[name] = value if value in ("on", "off") else float(value)
        except ValueError:
            sign = ""
        if not (sign and name):
            raise ValueError(
                f"--filter {text!r}: expected RULE=NUMBER, RULE=on or RULE=off; rules: {', '.join(_BY_NAME)}"
            )
    return overrides
