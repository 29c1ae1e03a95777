"""ModelConfig in Hugging Face's words, config.json and generation_config.json, and back.

Why: the two vocabularies meet here and nowhere else. What a dense Llama of ours cannot say is refused on the way in,
with the key that says it. Neighbours: `export` writes with `to_hf_config`, `importing` reads with `from_hf_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from tinyllama_mcore.config.schema import ConfigError, ModelConfig, RopeScaling

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

FIXED: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
}
"""What every model of ours is: written on export, demanded on import (where a key may be missing: see `ABSENT`)."""

ABSENT: Mapping[str, Any] = {key: value for key, value in FIXED.items() if key != "model_type"} | {
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
}
"""What transformers' LlamaConfig takes for a key that config.json leaves out."""


_SCALING_KEYS: Mapping[str, tuple[str, ...]] = {
    "linear": ("rope_type", "factor"),
    "llama3": tuple(field.name for field in fields(RopeScaling)),
}
"""Kind of RoPE scaling -> its keys, which are RopeScaling's fields."""


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
    return {
        "architectures": ["LlamaForCausalLM"],
        **FIXED,
        **{theirs: getattr(model, ours) for ours, theirs in FIELDS.items()},
        "head_dim": model.kv_channels,
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
    return {key: getattr(scaling, key) for key in _SCALING_KEYS[scaling.rope_type]}


def generation_config(roles: Mapping[str, int]) -> dict[str, Any]:
    """The content of generation_config.json: where a text starts and ends, and what fills a batch."""
    return {f"{role}_token_id": roles[role] for role in ("bos", "eos", "pad") if role in roles}


def from_hf_config(config: Mapping[str, Any], where: str) -> ModelConfig:
    """The ModelConfig of a config.json; `where` names the file in messages.

    Raises:
        ConfigError: the model is not a dense Llama as ours are, or a size is missing.
    """
    rope = config.get("rope_parameters") or {}
    said = {**ABSENT, **config, **{key: value for key, value in rope.items() if key == "rope_theta"}}
    if said.get("num_key_value_heads") is None:
        said["num_key_value_heads"] = said.get("num_attention_heads")
    for key, only in FIXED.items():
        if said.get(key) != only:
            raise ConfigError(f"{where}: {key} is {said.get(key)!r}; only {only!r} can be imported (a dense Llama)")
    if said.get("quantization_config"):
        raise ConfigError(f"{where}: quantization_config is set; import the weights in fp32, fp16 or bf16")
    missing = [theirs for theirs in FIELDS.values() if said.get(theirs) is None]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} missing; config.json has to give every size of the model")
    scaling = _scaling_of(config, where)
    model = ModelConfig(**{ours: said[theirs] for ours, theirs in FIELDS.items()}, rope_scaling=scaling)
    if said.get("head_dim") not in (None, model.kv_channels) or model.hidden_size % model.num_attention_heads:
        raise ConfigError(
            f"{where}: head_dim is {said.get('head_dim')}; only hidden_size / num_attention_heads = "
            f"{model.hidden_size / model.num_attention_heads:g} can be imported"
        )
    return model


def _scaling_of(config: Mapping[str, Any], where: str) -> RopeScaling | None:
    """How positions are stretched, in version 4's words (`rope_scaling`, `type`) or 5's (`rope_parameters`)."""
    found: RopeScaling | None = None
    for key in ("rope_scaling", "rope_parameters"):
        rope = dict(config.get(key) or {})
        rope.pop("rope_theta", None)
        kind = rope.pop("type", rope.get("rope_type", "default"))
        if kind == "default" and not rope.keys() - {"rope_type"}:
            continue
        rope["rope_type"] = kind
        if set(rope) != set(_SCALING_KEYS.get(kind, ())):
            known = "; ".join(f"{name} with {', '.join(keys[1:])}" for name, keys in _SCALING_KEYS.items())
            raise ConfigError(f"{where}: {key} is {config[key]!r}; what can be imported: unscaled RoPE, {known}")
        found = RopeScaling(**rope)
    return found


def parameter_count(config: Mapping[str, Any]) -> int:
    """Elements of a LlamaForCausalLM with this config.json, in closed form: 1,100,048,384 for TinyLlama-1.1B."""
    h, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    n, g, d = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    attention = h * d * (n + g + g) + n * d * h  # query, key, value; output
    return v * h + config["num_hidden_layers"] * (attention + 3 * h * f + 2 * h) + h + v * h
