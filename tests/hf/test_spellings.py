"""Every way in which transformers 5 lets a config.json spell a value: read as it reads it, or refused by name."""

from __future__ import annotations

import itertools
from dataclasses import fields
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.hf.config import FIELDS, from_hf_config
from tinyllama_mcore.hf.families import ALIKE, FAMILIES, Family
from tinyllama_mcore.model.rope import inverse_frequencies

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.5, "high_freq_factor": 4.0}
OLD = {"original_max_position_embeddings": 1024}
TAKEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "sizes": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
    "groups": {"num_key_value_heads": 8},
    "null groups": {"num_key_value_heads": None},
    "null head_dim": {"head_dim": None},
    "head_dim": {"head_dim": 128},
    "swish": {"hidden_act": "swish"},
    "null dropout": {"attention_dropout": None},
    "whole dropout": {"attention_dropout": 0},
    "epsilon": {"rms_norm_eps": 1e-5},
    "rows and positions": {"vocab_size": 603, "max_position_embeddings": 4096},
    "theta beside": {"rope_theta": 5e5},
    "whole theta": {"rope_theta": 500000},
    "theta in rope_parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "theta in rope_scaling": {"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
    "theta and nothing else in rope_parameters": {"rope_parameters": {"rope_theta": 5e5}},
    "theta and nothing else in rope_scaling": {"rope_scaling": {"rope_theta": 5e5}},
    "theta beside a kind": {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}},
    "theta twice": {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "nulls": {"rope_scaling": None, "rope_parameters": None, "rope_theta": 5e5},
    "empty objects": {"rope_scaling": {}, "rope_parameters": {}, "rope_theta": 5e5},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 5e5},
    "linear by its old name": {"rope_scaling": {"type": "linear", "factor": 4}, "rope_theta": 5e5},
    "linear by both names": {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0}},
    "linear with its theta": {"rope_scaling": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    "linear in rope_parameters": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    "old name in rope_parameters": {"rope_parameters": {"type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    "default by its old name": {"rope_scaling": {"type": "default", "rope_theta": 5e5}},
    "both places": {
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
        "rope_theta": 5e5,
    },
    "llama3": {"rope_scaling": {"rope_type": "llama3", **LLAMA3, **OLD}, "rope_theta": 5e5},
    "llama3 in rope_parameters": {"rope_parameters": {"rope_type": "llama3", **LLAMA3, **OLD, "rope_theta": 5e5}},
    "llama3 by its old name": {"rope_scaling": {"type": "llama3", **LLAMA3, **OLD, "rope_theta": 5e5}},
    "llama3 without its context": {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "max_position_embeddings": 4096},
    "llama3, its context beside": {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, **OLD},
    "llama3, its context twice": {"rope_scaling": {"rope_type": "llama3", **LLAMA3, **OLD}, **OLD},
    "a context that nothing reads": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, **OLD},
    "the whole head": {"partial_rotary_factor": 1.0},
    "the whole head inside": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0}},
    "is_causal": {"is_causal": True},
    "no quantization": {"quantization_config": None},
    "what says nothing of the model": {
        "pretraining_tp": 2,
        "use_cache": False,
        "initializer_range": 0.1,
        "dtype": "float16",
    },
}
"""Keys of a config.json beside `model_type`, which transformers takes too."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two thetas": (
        {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 5e5}},
        "rope_parameters.rope_theta is 500000.0",
    ),
    "two kinds": ({"rope_scaling": {"type": "linear", "rope_type": "default"}}, "rope_scaling.rope_type is 'default'"),
    "two places": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5e5}},
        "different positions",
    ),
    "a theta that rope_scaling hides": (
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 5e5}},
        "different positions",
    ),
    "two contexts": (
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, **OLD}, "original_max_position_embeddings": 512},
        "original_max_position_embeddings is 1024 and",
    ),
    "part of a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "part of a head inside": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    "theta as text": ({"rope_scaling": {"rope_theta": "5e5"}}, "rope_theta is '5e5'"),
    "null theta inside": ({"rope_parameters": {"rope_theta": None}}, "rope_theta is None"),
    "a factor as text": ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "rope_scaling is"),
    "no factor": ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling is"),
    "a key too many": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}}, "rope_scaling is"),
    "not an object": ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    "nested by layer": ({"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}, "rope_parameters is"),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling is"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, **OLD}}, "rope_scaling is"),
    "not causal": ({"is_causal": False}, "is_causal is False"),
    "layers unlike": ({"per_layer_config": {"0": {"intermediate_size": 8}}}, "per_layer_config is"),
    "compressed": ({"compression_config": {"format": "int4"}}, "compression_config is"),
    "half a layer": ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
    "a size as text": ({"hidden_size": "4096"}, "hidden_size is '4096'"),
    "null positions": ({"max_position_embeddings": None}, "max_position_embeddings is None"),
    "dropout": ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
}
NO_EFFECT = {
    *("transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "is_encoder_decoder"),
    *("chunk_size_feed_forward", "id2label", "label2id", "problem_type", "initializer_range", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "pretraining_tp"),
}
"""Fields of LlamaConfig by which LlamaForCausalLM computes the same logits whatever they are."""


WINDOWS = {"sliding_window", "max_window_layers", "layer_types"}
"""What `use_sliding_window` turns on; `layer_types` is read too, and refused where a layer has a window."""


def assert_read_alike(keys: dict[str, Any]) -> None:
    """The model and its frequencies are those of transformers' own classes."""
    ours, theirs = from_hf_config({"model_type": "llama", **keys}, "config.json"), LlamaConfig(**keys)
    for field, key in FIELDS.items():
        said = theirs.rope_parameters[key] if key == "rope_theta" else getattr(theirs, key)
        assert getattr(ours, field) == said, key
    assert ours.head_dim == theirs.head_dim
    torch.testing.assert_close(inverse_frequencies(ours), LlamaRotaryEmbedding(theirs).inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize("keys", TAKEN.values(), ids=list(TAKEN))
def test_every_spelling_is_read_as_transformers_reads_it(keys: dict[str, Any]) -> None:
    """Numbers, and the angles that come of them."""
    assert_read_alike(keys)


@pytest.mark.parametrize(("keys", "named"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_said_is_refused_by_name(keys: dict[str, Any], named: str) -> None:
    """The message names the file, the key and its value."""
    with pytest.raises(ConfigError) as refused:
        from_hf_config({"model_type": "llama", **keys}, "some/config.json")
    assert str(refused.value).startswith("some/config.json: ")
    assert named in str(refused.value)


def test_no_mixture_of_spellings_is_read_otherwise() -> None:
    """Each place with each content: as transformers reads it, or refused. A fifth at least is read."""
    bases: list[dict[str, Any]] = [{}, {"rope_theta": 5e5}, {"rope_theta": 1e6}]
    kinds: list[dict[str, Any]] = [
        *({}, {"rope_type": "default"}, {"type": "default"}, {"type": "linear", "factor": 2.0}),
        *({"rope_type": "linear", "factor": 2.0}, {"rope_type": "llama3", **LLAMA3}),
        *({"rope_type": "llama3", **LLAMA3, **OLD}, {"rope_type": "linear", "type": "default", "factor": 2.0}),
    ]
    places = [kind | base for kind in kinds for base in bases]
    mixtures = list(itertools.product(bases, ({}, OLD), places, places))
    read = 0
    for base, context, scaling, parameters in mixtures[::3]:
        keys = {**base, **context, "rope_scaling": dict(scaling), "rope_parameters": dict(parameters)}
        try:
            from_hf_config({"model_type": "llama", **keys}, "config.json")
        except ConfigError:
            continue
        assert_read_alike(keys)
        read += 1
    assert read > 50


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_field_of_the_installed_class_is_known(family: Family) -> None:
    """A new one has to be read, refused, or listed as without effect; no word stands for another by a map."""
    config = getattr(transformers, family.architecture).config_class
    known = {*FIELDS.values(), *family.fixed, "rope_parameters", "tie_word_embeddings"} - {"rope_theta"}
    names = {field.name for field in fields(config)}
    assert names - NO_EFFECT - WINDOWS - {"head_dim"} == known
    assert "layer_types" in names or "use_sliding_window" not in names
    assert config.attribute_map == {}
    defaults = config()
    assert {key: getattr(defaults, key) for key in family.absent} == dict(family.absent)
    assert set(ALIKE) <= {key for each in FAMILIES for key in each.fixed}
