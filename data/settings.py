"""Settings: a dataclass is the one source of a command's flags, their help and what is written to `config.json`.

Each field is followed by a string literal that says its meaning, unit and reason:

    @dataclass
    class Settings:
        lr: float = 3e-4
        '''Peak learning rate.'''

`parse` turns it into a command line: field `global_batch_size` is the flag `--global-batch-size`.
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from data.disk_full import explain

POSITIONAL = {"positional": True}
"""Metadata of a field that is given by place instead of by flag: `out: str = field(default="x", metadata=POSITIONAL)`.
"""


def field_docstrings(settings_class: type) -> dict[str, str]:
    """The string literal below each field, base classes included: `{field name: text}`."""
    texts: dict[str, str] = {}
    for cls in reversed(settings_class.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        for statement, following in itertools.pairwise(body):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                texts[statement.target.id] = " ".join(str(following.value.value).split())
    return texts


def _add_argument(parser: argparse.ArgumentParser, field: dataclasses.Field, annotation: object, text: str) -> None:
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    options: dict[str, object] = {"help": text.replace("%", "%%")}
    if not required:
        options["default"] = default
        if default not in (None, ()) and not isinstance(default, bool):
            options["help"] += f" (default: {' '.join(default) if isinstance(default, tuple) else default})"
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):  # X | None
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if annotation is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        options |= {"choices": choices, "type": type(choices[0])}
    elif typing.get_origin(annotation) is tuple:
        options |= {"nargs": "*", "type": typing.get_args(annotation)[0], "metavar": "VALUE", "action": _Extend}
    else:
        options |= {"type": annotation, "metavar": annotation.__name__.upper()}
    if field.metadata.get("positional"):
        options.pop("action", None)
        parser.add_argument(field.name, **options, **({} if required or "nargs" in options else {"nargs": "?"}))
    else:
        if required:
            options["required"] = True
        parser.add_argument("--" + field.name.replace("_", "-"), **options)


class _Extend(argparse.Action):
    """Values of a repeated flag are joined; the first one given replaces the default."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = getattr(namespace, "_given", set())
        earlier = getattr(namespace, self.dest) if self.dest in given else ()
        namespace._given = given | {self.dest}
        setattr(namespace, self.dest, tuple(earlier) + tuple(values))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def parse(settings_class: type, argv: Sequence[str], *, program: str, description: str):
    """Settings from command-line words. ValueError for words that are wrong; `--help` prints and exits with 0."""
    parser = _Parser(prog=program, description=description, allow_abbrev=False)
    texts = field_docstrings(settings_class)
    annotations = typing.get_type_hints(settings_class)
    for field in dataclasses.fields(settings_class):
        assert field.name in texts, f"{settings_class.__name__}.{field.name} has no docstring"
        _add_argument(parser, field, annotations[field.name], texts[field.name])
    values = vars(parser.parse_args(list(argv)))
    values.pop("_given", None)
    return settings_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def parse_assignment(text: str, flag: str) -> tuple[str, Path]:
    """`NAME=PATH` as `(name, path)`; ValueError names the flag and shows the form."""
    name, sign, path = text.partition("=")
    if not (sign and name and path):
        raise ValueError(f"{flag} {text!r}: expected NAME=PATH")
    return name, Path(path).expanduser()


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command; what a user can cause (ValueError, OSError) ends in one line on stderr and exit code 2."""
    try:
        code = main() or 0
    except (ValueError, OSError) as error:
        text = explain(error) if isinstance(error, OSError) else str(error)
        message = " ".join(text.split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
