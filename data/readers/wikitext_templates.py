"""What MediaWiki's templates write, for those that write words or numbers into running text; others give none."""

import re
from collections.abc import Callable, Mapping, Sequence

from data.readers.inline import names, squeeze, superscript

_KEY = re.compile(r"[\w -]+")
_NUMBER = re.compile(r"[~+\-−±]?\s*[.\d]*\d")
_JOINT = re.compile(
    r"(to|to about|and|or|by|x|xx|×|\*|-|–|—|\+|±|\+/[-−]|,|, ?and|, ?or|/)(?:\([^)]*\))?", re.IGNORECASE
)
_JOINTS = {
    "-": "–", "–": "–", "—": "–", "x": " × ", "xx": " × ", "*": " × ", "+/-": " ± ", "+/−": " ± ", ",": ", ", "/": "/",
    ", and": ", and ", ",and": ", and ", ", or": ", or ", ",or": ", or ",
}  # fmt: skip
_LARGER, _SMALLER = names("mi yd ft st lb LT ST cwt ch fur h min"), names("yd ft in oz lb cwt qtr ch rd li min s")
"""Units of a measure in two parts: 6 ft 2 in."""
_UNITS = {"C": "°C", "F": "°F", "C-change": "°C", "F-change": "°F"}
_FORMULA = re.compile(r"(?=\D*\d)(?:(?:[HCNOSPFIK]|Ca|Na|Cl|Mg|Fe|Br|Li|Si|Al)\d*)+[+-]?")  # {{CO2}}
_CURRENCIES = {
    "gbp": "£", "£": "£", "pound sterling": "£", "eur": "€", "euro": "€", "€": "€", "usd": "US$", "us$": "US$",
    "us dollar": "US$", "$": "$", "aud": "A$", "a$": "A$", "au$": "A$", "cad": "C$", "c$": "C$", "can$": "C$",
    "nzd": "NZ$", "nz$": "NZ$", "jpy": "¥", "¥": "¥", "yen": "¥", "cny": "CN¥", "inr": "₹", "indian rupee": "₹",
    "krw": "₩", "chf": "CHF ", "sek": "SEK ", "nok": "NOK ", "dkk": "DKK ", "zar": "R", "brl": "R$", "hk$": "HK$",
    "philippine peso": "₱", "php": "₱", "ngn": "₦",
}  # fmt: skip
_SHIPS = names("uss hms hmas hmcs hmnzs ss ms mv rms sms usns uscgc ins rfa")
_QUOTES_OF_TEXT = names("quote blockquote cquote quotation bq")
_FIRST_VALUE = _QUOTES_OF_TEXT | names(
    "nowrap nobr nobreak small smaller big larger em strong smallcaps sc unicode abbr abbrlink tooltip ill math mvar "
    "var script angbr nts nihongo flag keypress key ipa nobold center midsize vanchor"
)
_LAST_VALUE = frozenset((
    "lang", "transl", "transliteration", "color", "colour", "font color", "polytonic", "ill-wd", "resize",
))  # fmt: skip
_SIGNS = {
    "ndash": "–", "mdash": "—", "spaced ndash": " – ", "snd": " – ", "spnd": " – ", "spaced mdash": " — ",
    "dash": " – ", "en dash": "–", "em dash": "—", "nbsp": " ", "pi": "π", "mu": "μ", "deg": "°", "=": "=",
    "!": "|", "'": "'", "'s": "’s", "·": " · ", "times": "×", "minus": "−", "plusminus": "±", "prime": "′",
    "tau": "τ", "phi": "φ", "ge": "≥", "le": "≤",
}  # fmt: skip

Values = Sequence[str]
Named = Mapping[str, str]


def template_name(source: str) -> str:
    """The lower-case name of a template without braces."""
    return squeeze(source.partition("|")[0].replace("_", " ")).lower()


def template_text(source: str) -> str:
    """The words or numbers that a template (without its braces) writes; "" for one that writes none."""
    name, *parts = source.split("|")
    formula, name = squeeze(name), template_name(source)
    if name.startswith("formatnum:"):
        return name.removeprefix("formatnum:").strip()
    values: list[str] = []
    named: dict[str, str] = {}
    for part in parts:
        key, sign, value = part.partition("=")
        key = key.strip()
        if sign and _KEY.fullmatch(key):
            named[key] = value.strip()
        else:
            values.append(part.strip())
    while (number := str(len(values) + 1)) in named:  # {{convert|1=5|2=km}}
        values.append(named[number])
    if not values and name in _QUOTES_OF_TEXT:
        values = [text for text in (named.get("text"), named.get("quote")) if text][:1]
    if not values:
        return formula if _FORMULA.fullmatch(formula) else "×10" if name == "e" else _SIGNS.get(name, "")
    if name in _RULES:
        return _RULES[name](values, named)
    if name in _CURRENCIES:
        return _CURRENCIES[name] + values[0]
    if name in _SHIPS:
        return f"{name.upper()} {values[0]}"
    if name in _FIRST_VALUE or name.startswith("lang-"):
        return values[0]
    if name in _LAST_VALUE:
        return values[-1]
    return _SIGNS.get(name, "")


def _converted(values: Values, named: Named) -> str:
    """{{convert}}: the numbers before the first unit with what joins them, then that unit; what they are converted to
    and to how many digits is left out."""
    text, place = _number(values[0]), 1
    while place + 1 < len(values) and _NUMBER.match(values[place + 1]) and (joint := _JOINT.fullmatch(values[place])):
        word = joint.group(1).lower()
        text += _JOINTS.get(word, f" {word} ") + _number(values[place + 1])
        place += 2
    units = list(values[place : place + 1])
    text += "".join(f" {_unit(unit)}" for unit in units)
    while units and units[-1] in _LARGER and place + 2 < len(values) and values[place + 2] in _SMALLER:
        if not _NUMBER.match(values[place + 1]):
            break
        place += 2
        units.append(values[place])
        text += f" {_number(values[place - 1])} {_unit(values[place])}"
    return text


def _number(text: str) -> str:
    return re.sub(r"(?<=\d)\+(?=\d+/)", " ", text)  # 5+1/2


def _unit(code: str) -> str:
    if _NUMBER.match(code):
        return ""
    return _UNITS.get(code, re.sub(r"(?<=m)[23]$", lambda match: superscript(match.group(), "m"), code))


def _measured(values: Values, named: Named) -> str:
    """{{val}}: a number with its uncertainty (one, or an upper and a lower one) or a range, power of ten and unit."""
    number = values[0]
    if len(values) > 2 and (joint := _JOINT.fullmatch(values[1])):
        word = joint.group(1).lower()
        number += _JOINTS.get(word, f" {word} ") + values[2]
    elif len(values) == 2:
        number += f"±{values[1]}"
    elif len(values) > 2:
        number += f" +{values[1].lstrip('+')} −{values[2].lstrip('-−')}"
    exponent = named.get("e", "")
    unit = named.get("u") or named.get("ul", "")
    below = named.get("up") or named.get("upl", "")
    if exponent:
        number = (f"({number})" if len(values) > 1 else number) + "×10" + superscript(exponent, "10")
    return named.get("p", "") + number + (f" {unit}" if unit else "") + (f"/{below}" if below else "")


def _gapped(values: Values, named: Named) -> str:
    """{{gaps|1|000|e=5|u=m}}: the digits of one number."""
    return _measured(["".join(values)], named)


def _fraction(values: Values, named: Named) -> str:
    whole = f"{values[0]} " if len(values) > 2 else ""
    return f"{whole}{values[-2]}/{values[-1]}" if len(values) > 1 else f"1/{values[0]}"


def _as_of(values: Values, named: Named) -> str:
    """{{as of|2013|June|8}}: As of 8 June 2013."""
    numeric = all(value.isdigit() for value in values)
    date = "-".join(values) if numeric else " ".join(reversed(values))
    return named.get("alt") or f"{'as' if named.get('lc') else 'As'} of {date}"


def _nuclide(values: Values, named: Named) -> str:
    return "-".join(values[:2])


_RULES: dict[str, Callable[[Values, Named], str]] = {
    **dict.fromkeys(("convert", "cvt"), _converted),
    **dict.fromkeys(("val", "formatnum"), _measured),
    **dict.fromkeys(("frac", "sfrac", "fraction"), _fraction),
    **dict.fromkeys(("circa", "c.", "ca."), lambda values, named: "c. " + "–".join(values)),
    **dict.fromkeys(("sup", "chem sup"), lambda values, named: superscript(values[0], "")),
    **dict.fromkeys(("sub", "chem sub"), lambda values, named: values[0]),
    **dict.fromkeys(("chem", "chem2"), lambda values, named: "".join(values)),
    **dict.fromkeys(("simplenuclide", "simplenuclide2", "nuclide", "nuclide2"), _nuclide),
    **dict.fromkeys(("railgauge", "track gauge"), lambda values, named: re.sub(r"(?<=\d)(?=[a-z])", " ", values[0])),
    "gaps": _gapped,
    "e": lambda values, named: "×10" + superscript(values[0], "10"),
    "10^": lambda values, named: "10" + superscript(values[0], "10"),
    "ph": lambda values, named: f"pH {values[0]}",
    "as of": _as_of,
    "dts": lambda values, named: " ".join(values),
    "ship": lambda values, named: " ".join(values[:2]),
    "vol.": lambda values, named: f"Vol. {values[0]}",
    "bibleref": lambda values, named: " ".join(values[:2]),
    "us patent": lambda values, named: f"US patent {values[0]}",
    "oldstyledate": lambda values, named: " ".join(values[:2]),
}
