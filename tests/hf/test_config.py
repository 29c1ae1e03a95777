"""config.json: transformers reads what we meant, we read what transformers writes, and the rest is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.recipes import RECIPES
from tinyllama_mcore.config.schema import ModelConfig, RopeScaling
from tinyllama_mcore.hf.config import from_hf_config, generation_config, parameter_count, to_hf_config

PAPER = RECIPES["tinyllama-1.1b"].model
ODD = dataclasses.replace(PAPER, num_query_groups=1, rotary_base=500_000.0, norm_epsilon=3e-6, vocab_size=777)


@pytest.mark.parametrize("model", [PAPER, ODD])
def test_round_trip(model: ModelConfig) -> None:
    """Every field survives, whatever its value."""
    assert from_hf_config(to_hf_config(model, dtype="bf16", roles={"eos": 2}), "config.json") == model


@pytest.mark.parametrize("model", [PAPER, ODD])
def test_transformers_reads_what_we_wrote(model: ModelConfig, tmp_path: Path) -> None:
    """LlamaConfig of the installed version sees the base, the epsilon, the ids and the dtype."""
    roles = {"bos": 1, "eos": 2}
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(model, dtype="bf16", roles=roles)))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, LlamaConfig)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": model.rotary_base}
    assert (config.rms_norm_eps, config.head_dim, config.vocab_size) == (model.norm_epsilon, 64, model.vocab_size)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)
    assert (config.dtype, config.tie_word_embeddings) == (torch.bfloat16, False)


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(rope_type="linear", factor=4.0),
        RopeScaling(rope_type="llama3", factor=8.0, low_freq_factor=1.5, original_max_position_embeddings=4096),
    ],
)
def test_stretched_positions_survive(scaling: RopeScaling, tmp_path: Path) -> None:
    """Out and in again by our own code, and by transformers'."""
    model = dataclasses.replace(PAPER, rope_scaling=scaling)
    written = to_hf_config(model, dtype="bf16", roles={"eos": 2})
    assert from_hf_config(written, "config.json") == model
    (tmp_path / "config.json").write_text(json.dumps(written))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    read = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert {key: read["rope_parameters"][key] for key in ("rope_type", "factor")} == {
        "rope_type": scaling.rope_type,
        "factor": scaling.factor,
    }


def test_we_read_what_transformers_writes(tmp_path: Path) -> None:
    """Version 5 nests the RoPE base; the paper's model comes out."""
    LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        rms_norm_eps=1e-5,
    ).save_pretrained(tmp_path)
    assert from_hf_config(json.loads((tmp_path / "config.json").read_text()), "config.json") == PAPER


def test_the_first_llamas_words_are_read() -> None:
    """config.json of 2023: no key-value heads, no base, no head_dim; transformers' defaults stand for them."""
    written = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 100,
        "rms_norm_eps": 1e-6,
    }
    model = from_hf_config(written, "config.json")
    assert (model.num_query_groups, model.rotary_base, model.max_position_embeddings) == (4, 10000.0, 2048)


@pytest.mark.parametrize("model", [PAPER, ODD])
def test_the_closed_form_counts_what_transformers_builds(model: ModelConfig) -> None:
    """The formula and the modules agree: 1,100,048,384 for the paper's model."""
    config = to_hf_config(model, dtype="fp32", roles={})
    with torch.device("meta"):
        built = LlamaForCausalLM(LlamaConfig(**config))
    assert parameter_count(config) == sum(p.numel() for p in built.parameters())
    assert model is not PAPER or parameter_count(config) == 1_100_048_384


def test_only_the_tokens_that_there_are() -> None:
    """A role without a token is left out rather than written as null."""
    assert generation_config({"eos": 2, "unk": 0}) == {"eos_token_id": 2}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling is"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "rope_parameters is"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters is"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"intermediate_size": None}, "intermediate_size is None"),
    ],
)
def test_what_is_no_dense_llama_is_refused_by_name(changes: dict, named: str) -> None:
    """The message names the file, the key and its value."""
    written = to_hf_config(PAPER, dtype="fp32", roles={}) | changes
    with pytest.raises(ConfigError, match=rf"some/config\.json.*{named}"):
        from_hf_config(written, "some/config.json")
