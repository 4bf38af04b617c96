"""The demo world's token shards, made on first use by what the commands demo, curate and tokenize run."""

import json
from pathlib import Path


def ensure_demo_shards(folder: Path) -> str:
    """Path of the demo shards under `folder`, written if they are not there."""
    shards = folder / "shards"
    if (shards / "manifest.json").is_file():
        return str(shards)
    # Imported here: training on shards that exist needs none of the curation's libraries.
    from data import curate, demo, tokenize

    print(f"writing the demo world's shards to {shards}", flush=True)
    demo.run(demo.Settings(out=str(folder)))
    sources = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
    curate.run(curate.Settings(source=tuple(sources), out=str(folder / "corpus")))
    tokenize.run(
        tokenize.Settings(
            folder=str(folder / "corpus"), tokenizer=str(folder / "tokenizer" / "tokenizer.model"), out=str(shards)
        )
    )
    return str(shards)
