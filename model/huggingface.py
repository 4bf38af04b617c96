"""A model as a Hugging Face directory: weights read by memory-mapped slices, written as safetensors with an index."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from parallel.checkpoint import checkpoint_folders
from parallel.comm import Group, all_reduce
from parallel.parameter import Parameter

from .config import LlamaConfig
from .llama import Llama

MAX_FILE_BYTES = 5 * 10**9
"""Size after which the next tensor goes to a new file; 5 GB is what hubs and browsers take well."""


def load_model(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **options
) -> Llama:
    """A model with the shape and weights of a Hugging Face directory; `options` are those of `Llama`."""
    model = Llama(LlamaConfig.from_huggingface(path), dtype=dtype, device=device, **options)
    load_weights(model, path)
    return model


def load_weights(model: Llama, path: str | Path) -> None:
    """Fill the model's parameters from `model.safetensors` or the files of `model.safetensors.index.json`.

    Each parameter reads only its own rectangle, through a memory map, and is converted to the model's dtype. ValueError
    names the file and tensor for a missing file or tensor, a wrong shape, or weights that are not finite.
    """
    folder = Path(path)
    files = _tensor_files(folder)
    by_file: dict[Path, list[Parameter]] = {}
    for parameter in model.buffer.parameters:
        name = parameter.record.name
        if name not in files:
            raise ValueError(f"{folder}: tensor {name} is missing, though config.json asks for it")
        by_file.setdefault(files[name], []).append(parameter)
    expected = {parameter.record.name for parameter in model.buffer.parameters}
    unknown = sorted(name for name in files if name not in expected and not _is_redundant(name, model.config))
    if unknown:
        raise ValueError(
            f"{folder}: tensor {unknown[0]} ({len(unknown)} in all) does not belong to the model of config.json"
        )
    for file, parameters in by_file.items():
        try:
            with safe_open(file, framework="pt") as tensors:
                for parameter in parameters:
                    _load_parameter(parameter, tensors, file)
        except SafetensorError as error:
            raise ValueError(f"{file}: damaged safetensors file ({error}); fetch it again") from None


def _load_parameter(parameter: Parameter, tensors: safe_open, file: Path) -> None:
    record = parameter.record
    stored = tensors.get_slice(record.name)
    if tuple(stored.get_shape()) != record.global_shape:
        raise ValueError(
            f"{file}: tensor {record.name} is {tuple(stored.get_shape())}, config.json asks for {record.global_shape}"
        )
    values = stored[tuple(slice(o, o + n) for o, n in zip(record.offsets, record.shape, strict=True))]
    if not torch.isfinite(values).all():
        raise ValueError(f"{file}: tensor {record.name} holds NaN or infinite weights; use an earlier checkpoint")
    parameter.data.copy_(values)


def _is_redundant(name: str, config: LlamaConfig) -> bool:
    """Rotary frequencies, which old converters wrote; the head's copy of a tied embedding."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {name: folder / file for name, file in names.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: not an index with a weight_map ({error})") from None
        for file in sorted(set(files.values())):
            if not file.is_file():
                raise ValueError(f"{file}: named in {index.name} but missing")
        return files
    if not single.is_file():
        remedy = (
            "; save it as safetensors first: pickled .bin files are never opened" if list(folder.glob("*.bin")) else ""
        )
        raise ValueError(f"{folder}: neither model.safetensors nor model.safetensors.index.json{remedy}")
    try:
        with safe_open(single, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), single)
    except SafetensorError as error:
        raise ValueError(f"{single}: damaged safetensors file ({error}); fetch it again") from None


def save_model(model: Llama, folder: Path) -> None:
    """Write `config.json`, `model-*.safetensors` and `model.safetensors.index.json` in the model's dtype.

    All ranks of tp enter together and give their slices; the first writes.
    """
    tp = model.grid.tp
    folder.mkdir(parents=True, exist_ok=True)
    groups = list(_files_of(model.buffer.parameters))
    weight_map, total = {}, 0
    for number, parameters in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {parameter.record.name: _whole(parameter, tp) for parameter in parameters}
        if tp.rank == 0:
            save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if tp.rank == 0:
        dtype = str(model.dtype).removeprefix("torch.")
        _write_json(folder / "config.json", model.config.to_huggingface(dtype))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _whole(parameter: Parameter, tp: Group) -> torch.Tensor:
    """The Hugging Face tensor that this parameter is a slice of: zeros elsewhere, summed over the ranks."""
    record = parameter.record
    if record.shape == record.global_shape:
        return parameter.data
    whole = parameter.data.new_zeros(record.global_shape)
    whole[tuple(slice(o, o + n) for o, n in zip(record.offsets, record.shape, strict=True))] = parameter.data
    return all_reduce(whole, tp)


def _files_of(parameters: list[Parameter]) -> Iterator[list[Parameter]]:
    current: list[Parameter] = []
    size = 0
    for parameter in parameters:
        nbytes = math.prod(parameter.record.global_shape) * parameter.data.element_size()
        if current and size + nbytes > MAX_FILE_BYTES:
            yield current
            current, size = [], 0
        current.append(parameter)
        size += nbytes
    yield current


def _write_json(file: Path, values: dict) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def resolve(path: str | Path) -> Path:
    """The Hugging Face directory meant by `path`: itself, or the newest checkpoint of a run folder; ValueError for
    neither.
    """
    folder = Path(path)
    if checkpoints := checkpoint_folders(folder):
        return checkpoints[-1]
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: neither a Hugging Face folder with a config.json nor a run with checkpoints")
    if (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder}: a run without a whole checkpoint yet")
    return folder
