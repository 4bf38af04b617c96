"""The demo world's token shards, made on first use by what the commands demo, curate and tokenize run.

The settings are those of `demo.sh`, so that each can finish what the other began in the same folder.
"""

from pathlib import Path


def ensure_demo_shards(folder: Path) -> str:
    """Path of the demo shards under `folder`, written if they are not there.

    ValueError when `folder` holds another world, or documents that give a benchmark question away.
    """
    shards = folder / "shards"
    if (shards / "manifest.json").is_file():
        return str(shards)
    # Imported here: training on shards that exist needs none of the curation's libraries.
    from data import curate, demo, tokenize

    print(f"writing the demo world's shards to {shards}", flush=True)
    demo.run(demo.Settings(out=str(folder)))
    corpus = folder / "corpus"
    curate.run(curate.Settings(**demo.curation(folder), out=str(corpus)))
    if violations := demo.check_corpus(folder, corpus).violations:
        raise ValueError(f"{corpus} gives a benchmark question away: {violations[0]}; delete {folder} and run again")
    tokenizer = str(folder / "tokenizer" / "tokenizer.model")
    tokenize.run(tokenize.Settings(folder=str(corpus), tokenizer=tokenizer, out=str(shards)))
    return str(shards)
