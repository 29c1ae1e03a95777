"""ModelConfig in Hugging Face's words, config.json and generation_config.json, and back.

Why: the two vocabularies meet here and nowhere else. What a model of ours cannot say is refused on the way in, with the
key that says it. Neighbours: `families` has the architectures, `rope_config` reads rotary positions; `export` writes
with `to_hf_config`, `importing` reads with `from_hf_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import ModelConfig, RopeScaling
from tinyllama_mcore.hf import families
from tinyllama_mcore.hf.families import ALIKE
from tinyllama_mcore.hf.rope_config import SCALING_KEYS, read_rope

DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""What weights can be exported in, by the names of the command line."""

FIELDS: Mapping[str, str] = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "rotary_base": "rope_theta",
}
"""Field of ModelConfig -> key of config.json, where a number moves over as it is."""

FOREIGN: Mapping[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "per_layer_config": (None, {}),
    "quantization_config": (None, {}),
    "compression_config": (None, {}),
}
"""Keys by which transformers makes another model of the same class -> the values with which it does not."""


def to_hf_config(model: ModelConfig, *, dtype: str, roles: Mapping[str, int]) -> dict[str, Any]:
    """The content of config.json, spelled so that transformers 4 and 5 both read it.

    `rope_theta` and `torch_dtype` are version 4's words, which version 5 still takes; `rope_parameters` and `dtype`
    are version 5's own.

    Args:
        model: the architecture.
        dtype: a key of `DTYPES`.
        roles: the tokenizer's "bos", "eos" and "pad" ids, where it has them.
    """
    name = str(DTYPES[dtype]).removeprefix("torch.")
    family = families.of_model(model)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_act": family.fixed["hidden_act"],
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        **family.fixed,
        **{theirs: getattr(model, ours) for ours, theirs in FIELDS.items()},
        "head_dim": model.head_dim,
        "rope_scaling": None if model.rope_scaling is None else _scaling(model.rope_scaling),
        "rope_parameters": rope_parameters(model),
        "dtype": name,
        "torch_dtype": name,
        "use_cache": True,
        **generation_config(roles),
    }


def rope_parameters(model: ModelConfig) -> dict[str, Any]:
    """RoPE in transformers 5's words."""
    kind = {"rope_type": "default"} if model.rope_scaling is None else _scaling(model.rope_scaling)
    return {**kind, "rope_theta": model.rotary_base}


def _scaling(scaling: RopeScaling) -> dict[str, Any]:
    """Stretched positions as both versions spell them."""
    return {key: getattr(scaling, key) for key in SCALING_KEYS[scaling.rope_type]}


def generation_config(roles: Mapping[str, int]) -> dict[str, Any]:
    """The content of generation_config.json: where a text starts and ends, and what fills a batch."""
    return {f"{role}_token_id": roles[role] for role in ("bos", "eos", "pad") if role in roles}


def from_hf_config(config: Mapping[str, Any], where: str) -> ModelConfig:
    """The ModelConfig of a config.json; `where` names the file in messages.

    Raises:
        ConfigError: the model is no dense one of a family that `families` knows, or a size is none.
    """
    family = families.of_config(config, where)
    said = {**family.absent, **config}
    if said.get("num_key_value_heads") is None:
        said["num_key_value_heads"] = said["num_attention_heads"]
    for key, only in family.fixed.items():
        if said.get(key) not in (only, *ALIKE.get(key, ())):
            raise ConfigError(
                f"{where}: {key} is {said.get(key)!r}; only {only!r} can be imported (a dense {family.architecture})"
            )
    for key, harmless in FOREIGN.items():
        if key in config and config[key] not in harmless:
            raise ConfigError(
                f"{where}: {key} is {config[key]!r}; only a dense model, its layers alike and its weights in fp32, "
                "fp16 or bf16, can be imported"
            )
    _refuse_windows(said, where)
    sizes = {ours: _number(said, theirs, where) for ours, theirs in FIELDS.items() if theirs != "rope_theta"}
    base, scaling = read_rope(said, where)
    tied = said["tie_word_embeddings"]
    if not isinstance(tied, bool):
        raise ConfigError(f"{where}: tie_word_embeddings is {tied!r}; it must be true or false")
    model = ModelConfig(
        **sizes,
        rotary_base=base,
        rope_scaling=scaling,
        untie_embeddings_and_output_weights=not tied,
        add_qkv_bias=family.add_qkv_bias,
        qk_layernorm=family.qk_layernorm,
    )
    width = None if said.get("head_dim") is None else _number(said, "head_dim", where)
    usual = model.hidden_size % model.num_attention_heads == 0 and width == model.head_dim
    return model if usual else replace(model, kv_channels=width)


def _refuse_windows(said: Mapping[str, Any], where: str) -> None:
    """ConfigError where some layers see a part of the tokens before them (transformers 5 names them one by one)."""
    kinds = said.get("layer_types") or ()
    other = next((kind for kind in kinds if kind != "full_attention"), None)
    if other is not None:
        raise ConfigError(f"{where}: layer_types names {other!r}; only 'full_attention' can be imported")


def _number(said: Mapping[str, Any], key: str, where: str) -> Any:  # noqa: ANN401
    """The size that a key gives. ConfigError where it is no number above 0, or should be whole and is not."""
    value, kind = said[key], float if key == "rms_norm_eps" else int
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not value > 0:
        rule = "a whole number, at least 1" if kind is int else "a number above 0"
        raise ConfigError(f"{where}: {key} is {value!r}; it must be {rule}")
    return kind(value)


def parameter_count(config: Mapping[str, Any]) -> int:
    """Elements of a model with this config.json, in closed form: 1,100,048,384 for TinyLlama-1.1B."""
    h, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    n, g, d = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    attention = h * d * (n + g + g) + n * d * h  # query, key, value; output
    biases = d * (n + g + g) if config["model_type"] == "qwen2" else 0
    norms = 2 * h + (2 * d if config["model_type"] == "qwen3" else 0)
    head = 0 if config["tie_word_embeddings"] else v * h
    return v * h + config["num_hidden_layers"] * (attention + biases + 3 * h * f + norms) + h + head
