"""Licences in the few classes that decide what may be done with a text."""

import re

CLASSES = (
    "cc0",
    "public-domain",
    "cc-by",
    "cc-by-sa",
    "cc-by-nd",
    "cc-by-nc",
    "cc-by-nc-sa",
    "cc-by-nc-nd",
    "other",
    "unknown",
)
"""From free to closed. `other`: a licence is named that is none of these (`open-access`, MIT, a publisher's own);
`unknown`: none is named, as in all of MEDLINE."""

_SEPARATORS = re.compile(r"[\s_/,]+")
_ADDRESS = re.compile(r"creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)")
_ATTRIBUTION = re.compile(r"(?:cc-)?by((?:-(?:nc|sa|nd))*)(?:-(?:\d.*|igo.*))?")
_CC0 = re.compile(r"(?:cc-?0|cc-zero|zero)(?:-\d.*)?(?:-universal)?")
_PUBLIC_DOMAIN = re.compile(r"(?:licenseref-|cc-)?(?:pddc|pdm|mark|pddl|public-?domain)(?:-.*)?")


def license_class(spdx: str | None) -> str:
    """The class (one of CLASSES) of an SPDX-like name, as `CC-BY-NC-4.0`, `CC BY 4.0` or a Creative Commons
    address."""
    name = (spdx or "").strip().lower()
    if not name:
        return "unknown"
    address = _ADDRESS.search(name)
    name = _SEPARATORS.sub("-", address.group(1) if address else name)
    if _CC0.fullmatch(name):
        return "cc0"
    if _PUBLIC_DOMAIN.fullmatch(name):
        return "public-domain"
    attribution = _ATTRIBUTION.fullmatch(name)
    if attribution:
        parts = attribution.group(1).split("-")
        found = "cc-by" + "".join(f"-{part}" for part in ("nc", "sa", "nd") if part in parts)
        return found if found in CLASSES else "other"
    return "other"


def parse_licenses(text: str) -> tuple[str, ...]:
    """The classes named in `cc0,cc-by`, in the order of CLASSES; () for "". ValueError names the ones there are."""
    named = {name.strip().lower() for name in text.split(",") if name.strip()}
    unknown = sorted(named.difference(CLASSES))
    if unknown:
        raise ValueError(f"--licenses {text!r}: no class {', '.join(unknown)}; choose from {', '.join(CLASSES)}")
    return tuple(name for name in CLASSES if name in named)
