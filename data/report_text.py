"""`report.md`: the account of a curation for people."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from data.account import Account, SourceReport, octave, ranked
from data.clusters import CLUSTERS_FILE
from data.decontaminate import SHORTEST_QUESTION
from data.identities import RULES as DUPLICATE_RULES
from data.identities import VERDICTS
from data.licences import CLASSES
from data.manifest import MANIFEST_FILE
from data.report_picture import PICTURE_FILE
from data.summary import SAMPLE_CHARACTERS, SAMPLES

REPORT_FILE = "report.md"
CONTAMINATION_FILE = "contamination.jsonl"
LISTED = 12
"""Rows of a table of languages, notes or licences; `report.json` has all."""
NO_DEIDENTIFICATION = "This is no de-identification: names, places and dates stay."


def source_table(account: Account) -> str:
    """A row a source and the total."""
    with_tokens = any(source.token_sample[0] for source in account.sources.values())
    header = ["source", "kind", "records in", "dropped", "documents out", "validation", "characters out"]
    rows = []
    for source in account.sources.values():
        counts = [source.records, source.dropped.total(), source.documents.total(), source.documents["validation"]]
        rows.append([*counts, source.characters.total(), source.tokens(source.characters.total()) or 0])
    total = [sum(column) for column in zip(*rows, strict=True)]
    names = [(inline(name), source.kind) for name, source in account.sources.items()]
    rows, names = ([*rows, total], [*names, ("total", "")]) if len(rows) > 1 else (rows, names)
    if with_tokens:
        header.append("tokens out (estimated)")
    width = len(header) - 2
    return table(
        header, [[*name, *(f"{count:,}" for count in row[:width])] for name, row in zip(names, rows, strict=True)], 2
    )


def markdown(account: Account) -> str:
    """The whole report."""
    parts = [
        "# Curation report",
        source_table(account),
        _token_note(account),
        f"![where the records went; lengths, years, licences and languages of the documents]({PICTURE_FILE})",
        "## Rules",
        _rules(account),
        "## Duplicates",
        *_duplicates(account),
        *_benchmarks(account),
        "## What the documents are",
        *_shares(account),
    ]
    for name, source in account.sources.items():
        parts += [f"## Source {inline(name)}", *_source(source, account.shared.redactor.kinds)]
    if account.shared.samples:
        parts += ["## Samples", *_samples(account)]
    parts += [
        "## Provenance",
        f"`{MANIFEST_FILE}` has the sha256 of every file read and written, all settings and versions.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _token_note(account: Account) -> str:
    if account.shared.tokenizer_sha256 is None:
        return "Tokens were not counted; with `--tokenizer FILE` they are estimated for every source and rule."
    return "Tokens are estimated from a sample of each source: its tokens a character, times the characters."


def _rules(account: Account) -> str:
    rows = []
    for line in account.rules():
        threshold = line.unit if line.threshold is None else f"{line.threshold:,.12g} {line.unit}"
        rows.append([line.step, line.rule, threshold, f"{line.dropped:,}", inline(line.reason)])
    return table(["step", "rule", "threshold", "dropped", "why"], rows, 3, numbers=1)


def _duplicates(account: Account) -> list[str]:
    drops = account.drops()
    rules = [rule for rule in DUPLICATE_RULES[VERDICTS:] if drops[rule]]
    search = "Near-duplicates were not looked for (`--near-duplicates 0`)."
    if account.shared.near_duplicates:
        each = account.compared / max(account.total_records(), 1)
        search = f"{account.compared:,} candidate pairs were compared, {each:.2f} a record."
    if not rules:
        return [f"None. {search}"]
    rows = [
        [inline(name), *(f"{source.dropped[rule]:,}" for rule in rules)] for name, source in account.sources.items()
    ]
    text = (
        f"{search} {account.clusters:,} documents were kept instead of others; `{CLUSTERS_FILE}` names each with those "
        "dropped for it, the rule and the similarity."
    )
    kept = [
        f"- {inline(name)}: " + ", ".join(f"{inline(other)} {count:,}" for other, count in ranked(source.kept_instead))
        for name, source in account.sources.items()
        if source.kept_instead
    ]
    return [
        text,
        table(["dropped from", *rules], rows, 1),
        "Where the better copies of each source's duplicates are:",
        "\n".join(kept),
    ]


def _benchmarks(account: Account) -> list[str]:
    if not account.contamination.benchmarks:
        return [
            "## Benchmarks",
            "None given (`--benchmark NAME=PATH`): nothing was kept out of the corpus, and no overlap measured.",
        ]
    rows, quotes = [], []
    for name, found in account.contamination.benchmarks.items():
        left, checked = found["left"], found["checked"]
        counts = [found["questions"], checked, len(found["not_checked"]), found["articles"], found["documents_dropped"]]
        common = [_with_share(left[key], checked) for key in ("in_common_8", "in_common_13")]
        rows.append([name, *(f"{count:,}" for count in counts), *common, f"{100 * left['highest_share']:.0f} %"])
        quotes.append(f"- {_quote(name, found)}")
    header = ["benchmark", "questions", "looked for", "too short", "PMIDs looked for", "documents dropped",
              "8 words in common", "13 words in common", "most of one question"]  # fmt: skip
    return [
        "## Benchmarks",
        f"Questions of under {SHORTEST_QUESTION} words are phrases of honest text and not looked for; `report.json` "
        f"has their ids. `{CONTAMINATION_FILE}` has every document that was dropped, with its question.",
        table(header, rows, 1),
        "The last three columns are what is left: the questions of which a run of 8 (13) words stands in a document "
        "that stays (a question of fewer words has none), and of those the most that stands there, in words in order. "
        "They were counted before duplicates were dropped, so they are never too low. To be quoted beside a score:",
        "\n".join(quotes),
    ]


def _quote(name: str, found: Mapping) -> str:
    left, checked = found["left"], found["checked"]
    articles = f" with {found['articles']:,} articles they were made from" if found["articles"] else ""
    text = (
        f"{name}: {checked:,} of {found['questions']:,} questions{articles} were looked for in the training corpus, "
        f"and the {found['documents_dropped']:,} documents found were left out. Of the questions looked for, "
        f"{_with_share(left['in_common_8'], checked)} still have 8 words in a row in common with the corpus and "
        f"{_with_share(left['in_common_13'], checked)} have 13"
    )
    most = f"; at most {100 * left['highest_share']:.0f} % of such a question's words stand there in order"
    return f"“{text}{most if left['in_common_8'] else ''}.”"


def _shares(account: Account) -> list[str]:
    def of_all(
        title: str, count: Callable[[SourceReport], Mapping], order: Callable[[object], object] | None = None
    ) -> list[str]:
        counters = [Counter(count(source)) for source in account.sources.values()]
        total = sum(counters, Counter())
        keys = sorted(total, key=order) if order else [key for key, _ in ranked(total)[:LISTED]]
        rows = [
            [inline(str(key)), *(_with_share(counter[key], counter.total()) for counter in counters)] for key in keys
        ]
        if len(keys) < len(total):
            others = [counter.total() - sum(counter[key] for key in keys) for counter in counters]
            rows.append(["others", *(_with_share(rest, c.total()) for rest, c in zip(others, counters, strict=True))])
        return [table([title, *map(inline, account.sources)], rows, 1)]

    return [
        *of_all("characters", lambda source: {octave(n): count for n, count in source.lengths.items()}, _first_number),
        *of_all("year", lambda source: _decades(source.years), str),
        *of_all("language of the text", lambda source: source.languages),
        *of_all("licence class", lambda source: source.license_classes(), CLASSES.index),
    ]


def _first_number(text: str) -> int:
    return int(text.partition("-")[0])


def _decades(years: Mapping[int, int]) -> Counter[str]:
    decades: Counter[str] = Counter()
    for year, count in years.items():
        decades[f"{year // 10}0s" if year else "unknown"] += count
    return decades


def _source(source: SourceReport, kinds: Sequence[str]) -> list[str]:
    """The section of one source; `kinds` are those that were redacted."""
    parts = [_in_and_out(source)]
    rows = []
    for rule, count in ranked(source.dropped):
        rows.append([rule, _with_share(count, source.records), *_sizes(source, source.dropped_characters[rule])])
    if rows:
        parts.append(table(["dropped by", "records", *_size_names(source)], rows, 1))
    notes = Counter({key: n for key, n in source.notes.items() if not key.startswith("redacted ")})
    if kinds:
        counts = ", ".join(f"{kind} {source.notes[f'redacted {kind}']:,}" for kind in kinds)
        parts.append(f"Redacted: {counts}. {NO_DEIDENTIFICATION}")
    parts += _list("Left out or changed inside documents", _counts(notes))
    names = Counter({name: count for name, count in source.licenses.items() if name != "unknown"})
    parts += _list("Licences by name", _counts(names))
    parts += _list("Files of other kinds passed over, by suffix", _counts(source.passed_over))
    parts += _list("Files of the release that are not there", map(code, source.missing))
    parts += _list(f"Drops that name their place, the first {len(source.details)}", map(code, source.details))
    damaged = [f"{code(file)}: {inline(reason)}" for file, reason in sorted(source.damaged.items())]
    return parts + _list("Damaged files, of which nothing was used", damaged)


def _in_and_out(source: SourceReport) -> str:
    rows = [
        ["in", f"{source.records:,}", "", *_sizes(source, source.characters_read)],
        ["dropped", f"{source.dropped.total():,}", "", *_sizes(source, source.dropped_characters.total())],
        ["cleaned away", "", "", *_sizes(source, source.cleaned_away())],
    ]
    for split, count in sorted(source.documents.items()):
        rows.append([split, f"{count:,}", f"{source.words[split]:,}", *_sizes(source, source.characters[split])])
    lines = table(["", "records", "words", *_size_names(source)], rows, 1)
    return f"Files: {source.files:,}; bytes: {source.bytes:,}.\n\n{lines}"


def _size_names(source: SourceReport) -> list[str]:
    return ["characters", "tokens (estimated)"] if source.token_sample[0] else ["characters"]


def _sizes(source: SourceReport, characters: int) -> list[str]:
    tokens = source.tokens(characters)
    return [f"{characters:,}"] if tokens is None else [f"{characters:,}", f"{tokens:,}"]


def _samples(account: Account) -> list[str]:
    parts = [
        f"The first {SAMPLE_CHARACTERS:,} characters of up to {SAMPLES} documents a source, chosen by a hash of their "
        "id, as the reader gave them and as they are kept. `--no-samples` leaves them out."
    ]
    for name, source in account.sources.items():
        parts.append(f"### {inline(name)}")
        for sample in source.samples:
            if sample.before == sample.after:
                parts += [f"{code(sample.id)}, as read and as kept:", fenced(sample.after)]
            else:
                parts += [f"{code(sample.id)}, as read:", fenced(sample.before), "as kept:", fenced(sample.after)]
        if not source.samples:
            parts.append("No document was kept.")
    return parts


def table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int, numbers: int | None = None) -> str:
    """A Markdown table: `texts` columns at the left, then `numbers` (all that follow) at the right."""
    last = len(header) if numbers is None else texts + numbers
    ruler = ["---:" if texts <= column < last else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ruler, *rows))


def inline(text: str) -> str:
    """`text` on one line, its signs without a meaning in Markdown."""
    return re.sub(r"([\\`*<>\[\]|~$])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """`text` on one line as code, whatever it holds."""
    text = " ".join(text.split())
    ticks = "`" * (_longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def fenced(text: str) -> str:
    """`text` as a block of code, in a fence longer than any in it, without control characters."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", "\ufffd", text.replace("\r\n", "\n"))
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}text\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _list(title: str, lines: Iterable[str]) -> list[str]:
    lines = [f"- {line}" for line in lines]
    return [f"{title}:", "\n".join(lines)] if lines else []


def _counts(counter: Counter[str]) -> list[str]:
    lines = [f"{inline(key)}: {count:,}" for key, count in ranked(counter)[:LISTED]]
    more = len(counter) - len(lines)
    return [*lines, f"and {more:,} more in `report.json`"] if more > 0 else lines


def _with_share(count: int, total: int) -> str:
    if not count:
        return "0"
    share = 100 * count / total
    return f"{count:,} ({f'{share:.1f}' if share >= 0.05 else '< 0.1'} %)"
