"""`python -m data demo|curate|tokenize|inspect`: the data room's commands, in one process or under mpiexec."""

import gc
import importlib
import sys

from data.mpi import run_on_ranks
from data.settings import parse

COMMANDS = {
    "demo": "write the demo world: raw sources and benchmark files in their real formats",
    "curate": "raw sources to clean, deduplicated documents",
    "tokenize": "documents to memory-mapped token shards",
    "inspect": "the table of what is in a folder of documents, or in what training is given",
}


def main() -> int:
    """Run the command named by the first word; returns its exit code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in COMMANDS:
        asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help")
        lines = ["usage: python -m data COMMAND [--help]", ""]
        lines += [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
        print("\n".join(lines), file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    name = arguments[0]
    module = importlib.import_module(f"data.{name}")
    # Documents make no cycles, and Python's collector would look through all that was imported again and again.
    gc.freeze()
    gc.set_threshold(50_000)
    settings = parse(module.Settings, arguments[1:], program=f"python -m data {name}", description=COMMANDS[name])
    return module.run(settings)


if __name__ == "__main__":
    run_on_ranks(main)
