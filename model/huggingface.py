"""A model as a Hugging Face directory: weights read by memory-mapped slices, written as safetensors with an index."""

import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from parallel.checkpoint import checkpoint_folders
from parallel.host_file import host_files
from parallel.parameter import Parameter

from .config import LlamaConfig
from .llama import Llama

MAX_FILE_BYTES = 5 * 10**9
"""Size after which the next tensor goes to a new file; 5 GB is what hubs and browsers take well."""
BLOCK_BYTES = 4 * 2**20
"""Rows of a tensor that are read and checked at once."""
OVER_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
"""Tensors with a row for each token."""
NOISE = 0.1
"""Of the rows of new tokens, in standard deviations of the old ones: small beside what tells two words apart, and
enough that no two new tokens are alike."""


def load_model(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **options
) -> Llama:
    """A model with the shape and weights of a Hugging Face directory; `options` are those of `Llama`."""
    model = Llama(LlamaConfig.from_huggingface(path), dtype=dtype, device=device, **options)
    load_weights(model, path)
    return model


def load_weights(model: Llama, path: str | Path) -> None:
    """Fill the model's parameters from `model.safetensors` or the files of `model.safetensors.index.json`.

    Each parameter reads only its own rectangle, through a memory map, and is converted to the model's dtype: beside the
    parameters themselves no memory is taken but `BLOCK_BYTES`. ValueError names the file and tensor for a missing file
    or tensor, a wrong shape, or weights that are not finite; names are those of the whole model on every rank.

    A model with a larger vocabulary than the directory's `config.json` gets the rows of its new tokens from `_new_row`.
    """
    folder = Path(path)
    vocab_size = min(LlamaConfig.from_huggingface(folder).vocab_size, model.config.vocab_size)
    files = _tensor_files(folder)
    shapes = tensor_shapes(model.config)
    missing = next((name for name in shapes if name not in files), None)
    if missing is not None:
        raise ValueError(
            f"{folder}: tensor {missing} is missing, though config.json asks for it; fetch the folder again"
        )
    unknown = sorted(name for name in files if name not in shapes and not _is_redundant(name, model.config))
    if unknown:
        raise ValueError(
            f"{folder}: tensor {unknown[0]} ({len(unknown)} in all) does not belong to the model of config.json"
        )
    by_file: dict[Path, list[Parameter]] = {}
    for parameter in model.buffer.parameters:
        by_file.setdefault(files[parameter.record.name], []).append(parameter)
    for file, parameters in by_file.items():
        try:
            with safe_open(file, framework="pt") as tensors:
                for parameter in parameters:
                    _load_parameter(parameter, tensors, file, vocab_size)
        except SafetensorError as error:
            raise ValueError(f"{file}: damaged safetensors file ({error}); fetch it again") from None


def _load_parameter(parameter: Parameter, tensors: safe_open, file: Path, vocab_size: int) -> None:
    record = parameter.record
    stored = tensors.get_slice(record.name)
    length = vocab_size if record.name in OVER_VOCABULARY else record.global_shape[0]
    expected = (length, *record.global_shape[1:])
    if tuple(stored.get_shape()) != expected:
        raise ValueError(
            f"{file}: tensor {record.name} is {tuple(stored.get_shape())}, config.json asks for {expected}"
        )
    (first, rows), *others = zip(record.offsets, record.shape, strict=True)
    columns = tuple(slice(o, o + n) for o, n in others)
    # In blocks of rows: what is read stays in the file's pages, but the check of columns of a matrix copies them.
    step = max(1, BLOCK_BYTES // (max(1, math.prod(record.shape[1:])) * parameter.data.element_size()))
    old = max(0, min(rows, length - first))
    for start in range(0, old, step):
        block = parameter.data[start : min(start + step, old)]
        values = stored[(slice(first + start, first + start + len(block)), *columns)]
        if not all(map(math.isfinite, torch.aminmax(values))):
            raise ValueError(f"{file}: tensor {record.name} holds NaN or infinite weights; use an earlier checkpoint")
        block.copy_(values)
    if old < rows:
        blocks = (stored[start : start + step] for start in range(0, length, step))
        mean, deviation = _mean_and_deviation(blocks)
        for index in range(old, rows):
            parameter.data[index].copy_(_new_row(record.name, first + index, mean, deviation)[columns])


def _mean_and_deviation(blocks: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each column of the rows in all blocks `[rows, hidden]`: float64 `[hidden]` each."""
    count, total, squares = 0, 0.0, 0.0
    for block in blocks:
        values = block.double()
        count, total, squares = count + len(values), total + values.sum(0), squares + values.square().sum(0)
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0).sqrt()


def _new_row(name: str, token: int, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """The row `[hidden]`, float64, of a token that the stored model does not have: a pure function, so every layout
    makes the same.

    The mean of the old rows bounds what the new tokens take from the others' probabilities (J. Hewitt, "Initializing
    New Word Embeddings for Pretrained Language Models", 2021); copies of one row would all be trained alike.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name}:{token}".encode()))
    return mean + NOISE * deviation * torch.randn(mean.shape, generator=generator, dtype=torch.float64)


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


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> shape of every tensor of the whole model, in the model's order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    block = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def weight_files(config: LlamaConfig, dtype: torch.dtype) -> dict[str, list[str]]:
    """File name -> names of the tensors in it, the same for every layout: the embedding, each layer, and the final norm
    with the head begin a file, so that no pipeline splits one, and none is larger than `MAX_FILE_BYTES` unless a single
    tensor is.
    """
    shapes = tensor_shapes(config)
    groups: list[list[str]] = []
    part, size = "", 0
    for name, shape in shapes.items():
        of = name.split(".")[2] if name.startswith("model.layers.") else name
        if name == "lm_head.weight":
            of = "model.norm.weight"
        nbytes = math.prod(shape) * dtype.itemsize
        if of != part or size + nbytes > MAX_FILE_BYTES:
            groups.append([])
            part, size = of, 0
        groups[-1].append(name)
        size += nbytes
    return {f"model-{n:05d}-of-{len(groups):05d}.safetensors": names for n, names in enumerate(groups, start=1)}


def write_description(config: LlamaConfig, dtype: torch.dtype, folder: Path) -> None:
    """`config.json` and `model.safetensors.index.json`: all of a Hugging Face model but the weight files."""
    shapes = tensor_shapes(config)
    total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    weight_map = {name: file for file, names in weight_files(config, dtype).items() for name in names}
    _write_json(folder / "config.json", config.to_huggingface(str(dtype).removeprefix("torch.")))
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def save_model(model: Llama, folder: Path) -> None:
    """Write a model that is whole in this process as a Hugging Face folder, in the model's dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {parameter.record.name: parameter.data for parameter in model.buffer.parameters}
    for path, names in weight_files(model.config, model.dtype).items():
        (file,) = host_files({path: {name: (model.dtype, tuple(weights[name].shape)) for name in names}})
        for name, tensor in file.tensors.items():
            tensor.copy_(weights[name])
        file.write(folder)
    write_description(model.config, model.dtype, folder)


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
