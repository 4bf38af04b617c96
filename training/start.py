"""What a run starts from: data, tokenizer, model and dtype, checked against each other before anything is allocated."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from data.demo_shards import ensure_demo_shards
from data.megatron import find_megatron
from data.sampler import Sampler
from data.tokenizer import Tokenizer, load_tokenizer
from model.config import PRESETS, LlamaConfig, preset
from model.huggingface import resolve
from parallel.comm import gather_json
from parallel.grid import Grid, world_group

from .settings import Settings, parse_shares


def on_first_rank(action: Callable[[], Path], grid: Grid, device: torch.device) -> Path:
    """Run `action` on rank 0 while the others wait; the path it returns, or its ValueError, is every rank's."""
    result = None
    if grid.world.rank == 0:
        try:
            result = ("path", str(action()))
        except (ValueError, OSError) as error:
            result = ("error", str(error))
    kind, text = gather_json(result, grid.world, device)[0]
    if kind == "error":
        raise ValueError(text)
    return Path(text)


def data_folders(settings: Settings, grid: Grid, device: torch.device) -> list[tuple[str, float | None]]:
    """`--data` as (folder, share); the demo shards, which rank 0 writes if they are not there, without it."""
    if settings.data:
        return parse_shares(settings.data)
    return [(str(on_first_rank(lambda: ensure_demo_shards(Path("demo")), grid, device)), None)]


def choose_tokenizer(settings: Settings, folders: list[tuple[str, float | None]], sampler: Sampler) -> Tokenizer:
    """The tokenizer the data was made with: the shards' copy, or `--tokenizer` for Megatron pairs, which name none."""
    unnamed = [folder for folder, _ in folders if find_megatron(Path(folder))]
    if not settings.tokenizer:
        if unnamed:
            example = f", here --tokenizer {sampler.tokenizer_path}" if sampler.tokenizer_path else ""
            raise ValueError(
                f"--data {unnamed[0]}: a Megatron pair does not say its tokenizer; add --tokenizer{example}"
            )
        return load_tokenizer(sampler.tokenizer_path)
    tokenizer = load_tokenizer(settings.tokenizer)
    if sampler.vocab_size is None:
        sampler.vocab_size = tokenizer.vocab_size  # ids beyond it are then refused, as in shards
    if sampler.tokenizer_sha256 not in (None, tokenizer.sha256):
        theirs = load_tokenizer(sampler.tokenizer_path)
        added = ", the same with tokens added" if theirs.extends(tokenizer) else ""
        raise ValueError(
            f"--tokenizer {settings.tokenizer} is not the one the shards were made with; "
            f"give theirs: --tokenizer {sampler.tokenizer_path}{added}"
        )
    return tokenizer


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA and float32 on a CPU, unless named; ValueError for a GPU without bfloat16."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bfloat16; use --dtype float32")
    return getattr(torch, name)


def choose_model(model: str, sequence_length: int, tokenizer: Tokenizer) -> tuple[LlamaConfig, Path | None]:
    """(shape, folder of the first weights or None for random ones); checks tokenizer and context against the data.

    A preset's name wins over a folder of that name, which can be written `./NAME`.
    """
    if model in PRESETS or not Path(model).is_dir():
        config, folder = preset(model), None
        config = replace(
            config, vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id
        )
    else:
        folder = resolve(model)
        config = _with_vocabulary(folder, LlamaConfig.from_huggingface(folder), tokenizer)
    if sequence_length > config.max_position_embeddings:
        raise ValueError(
            f"--sequence-length {sequence_length} exceeds the model's context of "
            f"{config.max_position_embeddings} tokens"
        )
    return config, folder


def _with_vocabulary(folder: Path, config: LlamaConfig, tokenizer: Tokenizer) -> LlamaConfig:
    """The model's shape with an embedding for each of the data's tokens; says so where the model has fewer.

    ValueError when the data was tokenised with another tokenizer than the model's, tokens added to it allowed.
    """
    theirs = None
    if any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        theirs = load_tokenizer(folder)
        if theirs.sha256 != tokenizer.sha256 and not tokenizer.extends(theirs):
            raise ValueError(
                f"the tokenizer of {folder} is not the one the data was tokenised with; tokenise the documents with it"
            )
    if config.vocab_size >= tokenizer.vocab_size:
        return config
    if theirs is None or theirs.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder} has {config.vocab_size} token embeddings, the data uses {tokenizer.vocab_size} tokens; "
            "tokenise the documents with the model's tokenizer"
        )
    if world_group().rank == 0:
        print(
            f"{folder} has {config.vocab_size} token embeddings, the data {tokenizer.vocab_size} tokens: the new ones "
            "start from the mean of the old, with a little noise",
            flush=True,
        )
    return replace(config, vocab_size=tokenizer.vocab_size)
