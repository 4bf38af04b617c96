"""Licences as SPDX names (spdx.org/licenses), from addresses and words."""

import re

_CREATIVE_COMMONS = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)(?:/([0-9.]+))?", re.IGNORECASE)
_IN_WORDS = re.compile(r"creative\s+commons\s+attribution|\bCC[ -]BY\b", re.IGNORECASE)
_CONDITIONS = (
    ("NC", re.compile(r"non-?\s?commercial|\bNC\b", re.IGNORECASE)),
    ("ND", re.compile(r"no-?\s?deriv|\bND\b", re.IGNORECASE)),
    ("SA", re.compile(r"share-?\s?alike|\bSA\b", re.IGNORECASE)),
)
_VERSION = re.compile(r"\b[1-4]\.[05]\b")
_NAME_OF_LICENCE = 90
"""Characters behind `Creative Commons Attribution` in which its conditions and version are looked for."""
_DEDICATED = {"zero": "CC0", "mark": "CC-PDM"}
PUBLIC_DOMAIN = "LicenseRef-public-domain"
"""SPDX has no name for what was never under copyright or was put into the public domain by a plain statement."""


def spdx(statement: str) -> str | None:
    """`CC-BY-4.0`, `CC0-1.0`, `CC-BY-NC-ND-4.0`, ... from the addresses and words of a licence.

    A Creative Commons licence whose version is not said has a name without one (`CC-BY`). None where no licence is
    named: "open access" alone allows nothing.
    """
    address = _CREATIVE_COMMONS.search(statement)
    if address:
        group, kind, version = (part.lower() if part else "" for part in address.groups())
        if group == "publicdomain":
            return f"{_DEDICATED[kind]}-{version or '1.0'}" if kind in _DEDICATED else PUBLIC_DOMAIN
        return PUBLIC_DOMAIN if kind == "publicdomain" else _joined(f"CC-{kind.upper()}", version)
    words = _IN_WORDS.search(statement)
    if words:
        name = statement[words.end() : words.end() + _NAME_OF_LICENCE].partition(", which")[0]
        version = _VERSION.search(name)
        conditions = [condition for condition, pattern in _CONDITIONS if pattern.search(name)]
        return _joined("-".join(["CC-BY", *conditions]), version.group() if version else "")
    if re.search(r"\bCC0\b|\bCC[ -]Zero\b", statement, re.IGNORECASE):
        return "CC0-1.0"
    return PUBLIC_DOMAIN if re.search(r"public\s+domain", statement, re.IGNORECASE) else None


def _joined(name: str, version: str) -> str:
    return f"{name}-{version}" if version else name
