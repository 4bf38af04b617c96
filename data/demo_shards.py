"""The demo world's token shards, made on first use by what the commands demo, curate and tokenize run."""

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
    curate.run(curate.Settings(source=demo.source_arguments(folder), out=str(folder / "corpus")))
    tokenizer = str(folder / "tokenizer" / "tokenizer.model")
    tokenize.run(tokenize.Settings(folder=str(folder / "corpus"), tokenizer=tokenizer, out=str(shards)))
    return str(shards)
