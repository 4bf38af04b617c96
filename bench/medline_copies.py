"""MEDLINE files to measure on, as many as wanted, made of the records of a real one.

Every copy of a record gets another PMID, no DOI or PMCID, and in its title and abstract a seeded part of the longer
words is exchanged for others of the file, so that to a duplicate search no two records are alike: with a fifth of all
words changed, about a third of the phrases of five words is left, a Jaccard similarity near 0.2. The words stay real
ones: invented ones would cost a tokenizer, and whoever keeps a table of words, more than real texts do.
"""

import gzip
import random
import re
from pathlib import Path

RECORD = re.compile(rb"<PubmedArticle>.*?</PubmedArticle>", re.DOTALL)
PMID = re.compile(rb'(<PMID Version="\d+">|<ArticleId IdType="pubmed">)(\d+)(<)')
OTHER_ID = re.compile(rb'<(ArticleId|ELocationID) (?:IdType|EIdType)="(?:doi|pmc|pii)".*?</\1>')
TEXT = re.compile(rb"(<(ArticleTitle|AbstractText)\b[^>]*>)(.*?)(</\2>)", re.DOTALL)
TAG_OR_WORD = re.compile(rb"<[^>]*>|&[^;]*;|[A-Za-z]{5,}")
HEAD = b'<?xml version="1.0" encoding="utf-8"?>\n<PubmedArticleSet>'
CHANGED = 0.4
"""Share of the words of five and more letters (about half of all) that are exchanged."""


def write_copies(source: Path, folder: Path, files: int, records: int) -> list[Path]:
    """Writes `files` compressed files of `records` records each, from the records of `source` over and over."""
    originals = RECORD.findall(gzip.decompress(source.read_bytes()))
    words = [
        word
        for record in originals
        for text in TEXT.finditer(record)
        for word in TAG_OR_WORD.findall(text[3])
        if word[:1] not in b"<&"
    ]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(files):
        places = range(number * records, (number + 1) * records)
        copies = [
            _copy(originals[place % len(originals)], 1 + place // len(originals), place, words) for place in places
        ]
        content = HEAD + b"\n".join(copies) + b"</PubmedArticleSet>"
        paths.append(folder / f"pubmed21n{number + 1:04d}.xml.gz")
        paths[-1].write_bytes(gzip.compress(content, compresslevel=6, mtime=0))
    return paths


def _copy(record: bytes, number: int, seed: int, words: list[bytes]) -> bytes:
    """Copy `number` of a record."""
    source = random.Random(seed)

    def other_word(match: re.Match[bytes]) -> bytes:
        word = match[0]
        changes = word[:1] not in b"<&" and source.random() < CHANGED
        return source.choice(words) if changes else word

    def other_text(match: re.Match[bytes]) -> bytes:
        return match[1] + TAG_OR_WORD.sub(other_word, match[3]) + match[4]

    record = PMID.sub(lambda match: match[1] + str(number).encode() + match[2] + match[3], record)
    return TEXT.sub(other_text, OTHER_ID.sub(b"", record))
