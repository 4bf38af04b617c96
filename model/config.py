"""The shape of a Llama-family model, read from and written to a Hugging Face `config.json`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}
"""Architecture class named in `config.json` -> its `model_type`."""


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (arXiv 2104.09864) and how its frequencies are scaled for longer contexts."""

    theta: float = 10000.0
    """Base of the geometric row of wavelengths."""
    kind: str = "default"
    """`default`, `linear` (positions divided by `factor`) or `llama3` (only long wavelengths divided, smoothly)."""
    factor: float = 1.0
    """By how much the context is stretched."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_context / low_freq_factor are divided by `factor` in full."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original_context / high_freq_factor stay as they are."""
    original_context: int = 8192
    """llama3: positions the model was first trained on, in tokens."""


@dataclass(frozen=True)
class LlamaConfig:
    """Shape of one model. Sizes are in elements, lengths in tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope: Rope = Rope()
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    """Mistral: a token sees itself and the `sliding_window - 1` tokens before it; None sees all."""
    architecture: str = "LlamaForCausalLM"
    bos_token_id: int = 1
    eos_token_id: int | tuple[int, ...] = 2

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window is {self.sliding_window}; it must be at least 1, or null for none")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} attention heads are not a multiple of {self.num_kv_heads} key/value heads"
            )
        if self.head_dim % 8 or not 8 <= self.head_dim <= 256:
            raise ValueError(f"head_dim {self.head_dim} is not supported; the kernels take multiples of 8 up to 256")

    @property
    def parameters(self) -> int:
        """Number of weights, a tied embedding counted once."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    def flops_per_token(self, sequence_length: int) -> float:
        """Model FLOPs of one training token, forward and backward: 6 N + 12 L d s (PaLM, arXiv 2204.02311, appendix B).

        N leaves out the input embedding (a look-up); the causal mask is not discounted, so MFU compares with the
        figures most trainers publish.
        """
        weights = self.parameters - (0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size)
        return 6.0 * weights + 12.0 * self.num_layers * self.num_heads * self.head_dim * sequence_length

    @classmethod
    def from_huggingface(cls, path: str | Path) -> "LlamaConfig":
        """Read `config.json` (a file, or a folder holding it); old and new spelling of the rotary settings.

        Raises ValueError naming the file and key for an architecture or option this project does not have.
        """
        file = Path(path)
        file = file / "config.json" if file.is_dir() else file
        if not file.is_file():
            raise ValueError(f"{file}: no such file; a model is a Hugging Face folder with a config.json")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not JSON ({error})") from None
        try:
            return _from_values(values)
        except KeyError as error:
            raise ValueError(f"{file}: key {error} is missing") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None

    def to_huggingface(self, dtype: str) -> dict[str, Any]:
        """The `config.json` of this shape, in the new spelling; `dtype` is a torch name such as `bfloat16`."""
        rope: dict[str, Any] = {"rope_theta": self.rope.theta, "rope_type": self.rope.kind}
        if self.rope.kind != "default":
            rope["factor"] = self.rope.factor
        if self.rope.kind == "llama3":
            rope |= {
                "low_freq_factor": self.rope.low_freq_factor,
                "high_freq_factor": self.rope.high_freq_factor,
                "original_max_position_embeddings": self.rope.original_context,
            }
        values = {
            "architectures": [self.architecture],
            "model_type": ARCHITECTURES[self.architecture],
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": True,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            # Both spellings: readers older than `rope_parameters` look at the two top-level keys.
            "rope_parameters": rope,
            "rope_theta": self.rope.theta,
            "rope_scaling": None
            if self.rope.kind == "default"
            else {k: v for k, v in rope.items() if k != "rope_theta"},
            "dtype": dtype,
            "torch_dtype": dtype,
        }
        if self.architecture == "MistralForCausalLM":
            values["sliding_window"] = self.sliding_window
        return values


def _from_values(values: dict[str, Any]) -> LlamaConfig:
    architecture = _architecture(values)
    for key in ("attention_bias", "mlp_bias", "quantization_config"):
        if values.get(key):
            raise ValueError(f"{key} = {values[key]!r} is not supported (weights without biases, not quantised)")
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"hidden_act {values['hidden_act']!r} is not silu")
    heads = int(values["num_attention_heads"])
    mistral = architecture == "MistralForCausalLM"
    for key in ("bos_token_id", "eos_token_id"):
        if values.get(key, 1) is None:
            raise ValueError(f"{key} is null; every document begins with BOS and ends with EOS, so name both")
    eos = values.get("eos_token_id", 2)
    return LlamaConfig(
        vocab_size=int(values["vocab_size"]),
        hidden_size=int(values["hidden_size"]),
        intermediate_size=int(values["intermediate_size"]),
        num_layers=int(values["num_hidden_layers"]),
        num_heads=heads,
        # Keys left out mean the defaults of the architecture's own configuration class.
        num_kv_heads=int(values.get("num_key_value_heads") or (8 if mistral else heads)),
        head_dim=int(values.get("head_dim") or values["hidden_size"] // heads),
        max_position_embeddings=int(values.get("max_position_embeddings", 2048)),
        rms_norm_eps=float(values.get("rms_norm_eps", 1e-6)),
        rope=_rope_from_values(values),
        tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
        # Llama configs may carry the key without using it; only Mistral's attention reads it.
        sliding_window=values.get("sliding_window", 4096) if mistral else None,
        architecture=architecture,
        bos_token_id=int(values.get("bos_token_id", 1)),
        eos_token_id=tuple(eos) if isinstance(eos, list) else int(eos),
    )


def _architecture(values: dict[str, Any]) -> str:
    """From `architectures`, or from `model_type` where that is absent; the two must agree."""
    named = values.get("architectures") or [None]
    by_type = {model_type: name for name, model_type in ARCHITECTURES.items()}.get(values.get("model_type"))
    architecture = named[0] or by_type
    if architecture not in ARCHITECTURES or (values.get("model_type") and by_type != architecture):
        found = f"{named[0]!r}, model_type {values.get('model_type')!r}"
        raise ValueError(f"architecture {found} is not one of {', '.join(ARCHITECTURES)}")
    return architecture


def _rope_from_values(values: dict[str, Any]) -> Rope:
    """New spelling: one `rope_parameters`; old: top-level `rope_theta` and an optional `rope_scaling`."""
    settings = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = float(settings.get("rope_theta", values.get("rope_theta", 10000.0)))
    kind = settings.get("rope_type", settings.get("type", "default"))
    if float(settings.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))) != 1.0:
        raise ValueError("partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(theta=theta, kind="linear", factor=float(settings["factor"]))
    if kind == "llama3":
        return Rope(
            theta=theta,
            kind="llama3",
            factor=float(settings["factor"]),
            low_freq_factor=float(settings["low_freq_factor"]),
            high_freq_factor=float(settings["high_freq_factor"]),
            original_context=int(settings["original_max_position_embeddings"]),
        )
    raise ValueError(f"rotary scaling {kind!r} is not one of default, linear, llama3")


def _shape(
    vocab: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, context: int, **more: Any
) -> LlamaConfig:
    return LlamaConfig(
        vocab, hidden, intermediate, layers, heads, kv_heads, more.pop("head_dim", hidden // heads), context, **more
    )


_LLAMA3 = {"rope": Rope(500000.0, "llama3", 8.0), "bos_token_id": 128000, "eos_token_id": 128001}
_SMOLLM2 = {"tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0}

PRESETS: dict[str, LlamaConfig] = {
    # For trials on a CPU; their vocabulary is that of the data they are trained on.
    "tiny": _shape(512, 128, 352, 8, 8, 8, 2048),
    "demo": _shape(512, 128, 352, 4, 4, 4, 1024),
    "smollm2-135m": _shape(49152, 576, 1536, 30, 9, 3, 8192, rope=Rope(100000.0), **_SMOLLM2),
    "smollm2-360m": _shape(49152, 960, 2560, 32, 15, 5, 8192, rope=Rope(100000.0), **_SMOLLM2),
    "smollm2-1.7b": _shape(49152, 2048, 8192, 24, 32, 32, 8192, rope=Rope(130000.0), **_SMOLLM2),
    "tinyllama-1.1b": _shape(32000, 2048, 5632, 22, 32, 4, 2048),
    "llama2-7b": _shape(32000, 4096, 11008, 32, 32, 32, 4096),
    "llama2-13b": _shape(32000, 5120, 13824, 40, 40, 40, 4096),
    "llama2-70b": _shape(32000, 8192, 28672, 80, 64, 8, 4096),
    "llama3.1-8b": _shape(128256, 4096, 14336, 32, 32, 8, 131072, **_LLAMA3),
    "llama3.1-70b": _shape(128256, 8192, 28672, 80, 64, 8, 131072, **_LLAMA3),
    "llama3.2-1b": _shape(
        128256,
        2048,
        8192,
        16,
        32,
        8,
        131072,
        tie_word_embeddings=True,
        **(_LLAMA3 | {"rope": Rope(500000.0, "llama3", 32.0)}),
    ),
    "mistral-7b": _shape(32000, 4096, 14336, 32, 32, 8, 32768, sliding_window=4096, architecture="MistralForCausalLM"),
}
"""Shapes by name, for training from random weights and for planning."""


def preset(name: str) -> LlamaConfig:
    """The preset of that name; ValueError lists the names."""
    if name not in PRESETS:
        raise ValueError(f"model {name!r} is neither a folder with a config.json nor a preset ({', '.join(PRESETS)})")
    return PRESETS[name]
