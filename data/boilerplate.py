"""Takes out what publishers and web pages add to a text: copyright statements, "Download PDF", cookie and share lines.

A statement goes only from the end of its paragraph and when it holds no number but years and licence versions and no
word of a finding; a line goes only when all of it is one of the known ones. Nothing with a dose or a result can go.
"""

import re
from collections import Counter

_STATEMENT = re.compile(
    r"(?:(?<=[.?!)\]»”\"'])[ \t]+|^[ \t]*)(?:"  # after the end of a sentence, or a paragraph of its own
    r"(?P<record>\(?PsycInfo Database Record \(c\) \d{4} APA, all rights reserved\)?\.?"
    r"|(?:[A-Z][A-Za-z.&]* ){1,8}\d{4};\s?\d+(?:\(\d+\))?:•+[-–]•+\.?)"  # a citation whose pages are yet to come
    r"|(?P<rights>This (?:article|work|document) is (?:protected by|subject to) copyright\b.{0,120}"
    r"|This is an? open[- ]access (?:article|publication)\b.{0,600}"
    r"|(?:Crown )?(?:Copyright|©|\(c\))(?: ?©| ?\(c\))?(?:,? ?\d{4}\b| The Authors?\b| by\b).{0,300}"
    r"|Published by (?:Elsevier|John Wiley|Wiley|Springer|Oxford University Press|BMJ|Sage|Taylor)\b.{0,120}"
    r"|All rights reserved\.?))[ \t]*$",
    re.IGNORECASE,
)
_STATEMENT_SIGNS = (
    "©",
    "copyright",
    "(c) ",
    "rights reserved",
    "published by",
    "•-",
    "•–",
    "open access",
    "open-access",
)
_HARMLESS_NUMBER = re.compile(
    r"\b(?:18|19|20)\d\d\b|(?:\bBY|Attribution|Licen[sc]e|-?N[CD]|-?SA|/[a-z-]+)[ /-](?:v(?:ersion)? ?)?[1-4]\.[05]\b",
    re.IGNORECASE,
)
_FINDING = re.compile(
    r"\d|\b(?:was|were|found|showed|patients?|results?|study|studies|we|our|background|objectives?|methods?|conclusions?"
    r"|aims?|can|should|has|have|increased?|decreased?)\b",
    re.IGNORECASE,
)

_LINE = re.compile(
    r"(?:download|view|open|get|save) (?:as )?(?:the )?(?:full[- ]text )?(?:pdf|citation|full[- ]text|article)"
    r"(?: \(?pdf\)?)?"
    r"|(?:click|tap) here(?: (?:to|for) [a-z ]{3,60})?|(?:read|learn|see|show) more"
    r"|(?:skip|jump|go|back) to (?:the )?(?:main |page )?(?:content|navigation|top|search)"
    r"|share(?: (?:this|on|via|with|article|page|post|facebook|twitter|linkedin|x|whatsapp|e-?mail|friends|and|,))*"
    r"|(?:tweet|print|e-?mail) this(?: page| article)?|follow us(?: on [a-z, ]{1,40})?"
    r"|open in (?:a )?(?:new|separate) (?:tab|window)|view (?:large|larger image|in gallery)"
    r"|(?:sign|log) (?:in|up|out|on)(?: (?:to|or|for|with) [a-z ]{1,40})?"
    r"|create (?:an )?account|forgot (?:your )?password"
    r"|(?:accept|reject|allow|manage|decline)(?: all| your)? (?:cookies|cookie (?:settings|preferences))"
    r"|(?:accept|reject) all|cookie (?:policy|settings|preferences|notice)"
    r"|(?:this (?:web)?site|we) uses? cookies\b.{0,300}"
    r"|by (?:continuing|using|browsing)\b.{0,80}\b(?:cookies|terms|privacy)\b.{0,120}"
    r"|please enable (?:javascript|cookies)\b.{0,120}"
    r"|subscribe(?: (?:now|today|(?:to|for) [a-z' ]{1,60}))?|sign up (?:now|today|(?:to|for) [a-z' ]{1,60})"
    r"|(?:privacy policy|terms of (?:use|service)|terms (?:and|&) conditions|contact us|about us|home)"
    r"(?: ?[|·•/] ?[a-z &]{2,40})+"
    r"|privacy policy|terms of (?:use|service)|terms (?:and|&) conditions|sitemap|advertisement|e-?mail alerts"
    r"|cite this article|rights and permissions|request permissions",
    re.IGNORECASE,
)
_FIRST_WORDS = frozenset((
    "download", "view", "open", "get", "save", "click", "tap", "read", "learn", "see", "show", "skip", "jump", "go",
    "back", "share", "tweet", "print", "email", "e-mail", "follow", "sign", "log", "create", "forgot", "accept",
    "reject", "allow", "manage", "decline", "cookie", "this", "we", "by", "please", "subscribe", "privacy", "terms",
    "contact", "about", "home", "sitemap", "advertisement", "cite", "rights", "request",
))  # fmt: skip
_LONGEST_LINE = 400
_DIGIT = re.compile(r"\d")
_AROUND = " \t.!:›»>)]…"


def strip_boilerplate(text: str, notes: Counter[str]) -> str:
    """`text` without copyright statements and web page lines; each one is counted in `notes`."""
    signs = _shows_statement(text)
    lines, changed = text.split("\n"), False
    for place, line in enumerate(lines):
        if signs and _shows_statement(line):
            kept = _without_statements(line, notes)
            changed |= kept != line
            lines[place] = line = kept
        if line and _is_web_line(line):
            notes["web page lines taken out"] += 1
            lines[place], changed = "", True
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") if changed else text


def _shows_statement(text: str) -> bool:
    return any(map(text.lower().__contains__, _STATEMENT_SIGNS))


def _without_statements(line: str, notes: Counter[str]) -> str:
    """`line` without those at its end, the first of which takes the ones after it along."""
    while found := _STATEMENT.search(line):
        if found["rights"] and _FINDING.search(_HARMLESS_NUMBER.sub("", found["rights"])):
            break
        notes["copyright statements taken out"] += 1
        line = line[: found.start()]
    return line


def _is_web_line(line: str) -> bool:
    if len(line) > _LONGEST_LINE:
        return False
    first, _, _ = line.lstrip("•[(> ").partition(" ")
    if first.strip(_AROUND).lower() not in _FIRST_WORDS or _DIGIT.search(line):
        return False
    return _LINE.fullmatch(line.lstrip("•[(> ").rstrip(_AROUND)) is not None
