"""The answer in a generated text, by a strict rule, and the majority of several answers.

A text that states no answer gives None: it is counted as unparsed and never votes. No rule falls back on the first
letter of a word or on any other guess.
"""

import re
from collections import Counter
from collections.abc import Sequence

from data.questions import are_verdicts

# "The answer is: B", "the correct answer is (B)", "Answer: B"; the last one that can be read counts.
_STATEMENT = re.compile(r"\banswer(?:\s+(?:choice|option))?\s*(?:is|:)[\s:*\"'(\[]*", re.IGNORECASE)
_PREFIX = re.compile(r"(?:(?:option|choice|letter)\s+|the\s+letter\s+)[\s:*\"'(\[]*", re.IGNORECASE)
_LETTER = re.compile(r"(?P<letter>[A-Ja-j])(?P<after>\s*$|\s*[.,:;)\]\"'*!?\n]|\s+[A-Za-z]+)", re.MULTILINE)
_SEVERAL = re.compile(r"[\s.)\]]*(?:,|&|and\b|or\b)\s*[\"'(]?[A-J]\b")
_GOES_ON = {"because", "since", "as", "due", "which"}
# A model that runs on writes the next question itself; what follows answers that one.
_NEXT_QUESTION = re.compile(r"^\s*(?:Question:|Context:|###)", re.MULTILINE)


def extract_answer(text: str, options: dict[str, str]) -> str | None:
    """The letter of the option (letter to text) that `text` states after `answer is` (or `answer:`), else None.

    Read are: the letter itself, alone or before punctuation or a reason (`B.`, `(B)`, `B because ...`; in lower case
    only before punctuation or at the end), the exact text of an option in any case, and for PubMedQA the words yes,
    no, maybe. The last statement that can be read counts. Several letters, and a letter followed by the text of another
    option, state nothing.
    """
    end = _NEXT_QUESTION.search(text)
    own = text[: end.start()] if end else text
    for statement in reversed(list(_STATEMENT.finditer(own))):
        answer = _stated_option(own[statement.end() :], options)
        if answer is not None:
            return answer
    return None


def majority(answers: Sequence[str | None]) -> tuple[str | None, dict[str, int]]:
    """(winner, votes by letter). None does not vote; a tie goes to the answer that was given first, which favours no
    letter because the samples are exchangeable; without any vote the winner is None."""
    votes = Counter(answer for answer in answers if answer is not None)
    winner = max(votes, key=lambda answer: votes[answer], default=None)  # max keeps the first of equals
    return winner, dict(sorted(votes.items()))


def _stated_option(rest: str, options: dict[str, str]) -> str | None:
    rest = rest[prefix.end() :] if (prefix := _PREFIX.match(rest)) else rest
    named = _named_option(rest, options)
    if are_verdicts(options) or named is not None:
        return named
    match = _LETTER.match(rest)
    if match is None or match["letter"].upper() not in options or not _is_letter(match):
        return None
    letter, following = match["letter"].upper(), rest[1:]
    if _SEVERAL.match(following):
        return None
    return letter if _named_option(following.lstrip(" .,:;)]\"'*-"), options) in (letter, None) else None


def _is_letter(match: re.Match) -> bool:
    """Whether a single letter is meant as one: a word behind it makes "A" an article and a small letter a word."""
    after = match["after"].strip()
    if not after.isalpha():
        return True
    return match["letter"].isupper() and (match["letter"] != "A" or after.lower() in _GOES_ON)


def _named_option(rest: str, options: dict[str, str]) -> str | None:
    """The option whose whole text `rest` begins with; the longest where one text begins with another."""
    words = " ".join(rest.split()).casefold()
    best = max(
        (text for text in options.values() if _begins_with(words, " ".join(text.split()).casefold(), options)),
        key=len,
        default=None,
    )
    letters = [letter for letter, text in options.items() if text == best]
    return letters[0] if len(letters) == 1 else None


def _begins_with(words: str, text: str, options: dict[str, str]) -> bool:
    if not words.startswith(text):
        return False
    after = words[len(text) :]
    if are_verdicts(options) and after[:1] == " ":  # "no evidence was found" states nothing; "no because" does
        return after.split()[0].strip(".,;:") in _GOES_ON
    return not after[:1].isalnum() and not re.match(r"-\w", after)
