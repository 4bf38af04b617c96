"""Settings: field docstrings become help, types become flags."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from data.settings import POSITIONAL, field_docstrings, parse, parse_assignment, run_command


@dataclass
class Base:
    seed: int = 3
    """Where the
    order comes from."""


@dataclass
class Example(Base):
    folder: str = field(default="corpus", metadata=POSITIONAL)
    """Input."""
    source: tuple[str, ...] = ()
    """KIND=PATH."""
    rate: float = 0.5
    """Share, 100 % at most."""
    mode: Literal["a", "b"] = "a"
    """Which."""
    limit: int | None = None
    """Most."""
    verify: bool = False
    """Check."""


def parsed(*words):
    return parse(Example, words, program="example", description="An example.")


def test_defaults_and_docstrings():
    assert parsed() == Example()
    assert field_docstrings(Example)["seed"] == "Where the order comes from."


def test_every_type():
    settings = parsed(
        "in", "--source", "a=1", "b=2", "--source", "c=3", "--rate", "1e-2", "--mode", "b", "--limit", "4", "--verify"
    )
    assert settings == Example(3, "in", ("a=1", "b=2", "c=3"), 0.01, "b", 4, True)
    assert parsed("--no-verify", "--seed", "9").seed == 9


@pytest.mark.parametrize(
    "words", [("--mode", "c"), ("--limit", "many"), ("--unknown", "1"), ("--rat", "1"), ("--source=", "--rate")]
)
def test_bad_words_are_one_line(words):
    with pytest.raises(ValueError, match=r"^[^\n]+; see example --help$"):
        parsed(*words)


def test_help_says_text_and_default(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--rate FLOAT Share, 100 % at most. (default: 0.5)" in text
    assert "--verify, --no-verify" in text


def test_required_field():
    @dataclass
    class Required:
        out: str
        """Folder."""

    with pytest.raises(ValueError, match="--out"):
        parse(Required, [], program="p", description="d")
    assert parse(Required, ["--out", "x"], program="p", description="d").out == "x"


def test_assignments():
    assert parse_assignment("medline=a/b", "--source")[0] == "medline"
    for text in ("medline", "=a", "medline="):
        with pytest.raises(ValueError, match=r"--source '.*': expected NAME=PATH"):
            parse_assignment(text, "--source")


def test_user_errors_are_one_line_and_bugs_are_not_hidden(capsys):
    def fail(error):
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: fail(ValueError("file x,\n record 3: bad")))
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: file x, record 3: bad\n"
    with pytest.raises(AssertionError):
        run_command(lambda: fail(AssertionError("bug")))
