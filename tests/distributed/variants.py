"""Models of Llama's shape other than TinyLlama's: each switch of the model at least once, in small."""

from __future__ import annotations

from typing import Any

from tests.conftest import VOCABULARY
from tests.distributed.recipe import RECIPE
from tinyllama_mcore.config import records
from tinyllama_mcore.config.schema import ModelConfig

SCALING = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
TIED = {"untie_embeddings_and_output_weights": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama-3.2": {**TIED, "kv_channels": 12, "rope_scaling": SCALING, "rotary_base": 500_000.0},
    "qwen-2.5": {**TIED, "add_qkv_bias": True, "norm_epsilon": 1e-6},
    "qwen-3": {**TIED, "qk_layernorm": True, "kv_channels": 16, "norm_epsilon": 1e-6},
}
"""Name -> fields of the model that differ from the small one's (`recipe.RECIPE`)."""


def shape_of(name: str, **changes: object) -> ModelConfig:
    """A variant as a model, with more fields changed."""
    fields = {**RECIPE["model"], "vocab_size": VOCABULARY, **VARIANTS[name], **changes}
    return records.from_plain(ModelConfig, fields, name)


def recipe_of(name: str) -> dict[str, Any]:
    """A variant as a recipe file has it."""
    return RECIPE | {"model": RECIPE["model"] | VARIANTS[name]}
