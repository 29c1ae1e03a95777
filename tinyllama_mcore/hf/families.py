"""The architectures of Hugging Face that models of ours are: Llama, Qwen-2 (and 2.5) and Qwen-3, a row each.

Neighbour: `config` translates between a row's config.json and a ModelConfig. Seen in transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import ModelConfig

ALIKE: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("swish",),
    "attention_dropout": (None,),
    "use_sliding_window": (None,),
}
"""Other words for the values of `Family.fixed`."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type`."""

    model_type: str
    architecture: str
    """The class of transformers."""
    fixed: Mapping[str, Any]
    """What a model of ours says: written on export, demanded on import, where a key that is missing means it too."""
    absent: Mapping[str, Any]
    """What the class's config takes for another key that config.json leaves out; for RoPE see `rope_config`."""
    add_qkv_bias: bool = False
    qk_layernorm: bool = False


_ABSENT: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_LLAMA_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
}
_QWEN2_FIXED: dict[str, Any] = {"hidden_act": "silu", "attention_dropout": 0.0, "use_sliding_window": False}
_QWEN3_FIXED = _QWEN2_FIXED | {"attention_bias": False}
_QWEN_ABSENT: dict[str, Any] = _ABSENT | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
}

FAMILIES: tuple[Family, ...] = (
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        fixed=_LLAMA_FIXED,
        absent=_LLAMA_FIXED
        | _ABSENT
        | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    ),
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        fixed=_QWEN2_FIXED,
        absent=_QWEN2_FIXED | _QWEN_ABSENT,
        add_qkv_bias=True,
    ),
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        fixed=_QWEN3_FIXED,
        absent=_QWEN3_FIXED | _QWEN_ABSENT | {"head_dim": 128},
        qk_layernorm=True,
    ),
)


def of_model(model: ModelConfig) -> Family:
    """The family that a model is exported as."""
    own = (model.add_qkv_bias, model.qk_layernorm)
    return next(family for family in FAMILIES if (family.add_qkv_bias, family.qk_layernorm) == own)


def of_config(config: Mapping[str, Any], where: str) -> Family:
    """The family of a config.json; `where` names the file. ConfigError where it is none of ours."""
    named = config.get("model_type")
    found = next((family for family in FAMILIES if family.model_type == named), None)
    if found is None:
        known = ", ".join(repr(family.model_type) for family in FAMILIES)
        raise ConfigError(
            f"{where}: model_type is {named!r}; only dense models of {known} can be imported (no mixture of experts)"
        )
    return found
