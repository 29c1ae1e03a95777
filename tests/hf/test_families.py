"""Llamas with one matrix for embedding and head, Qwen-2 and Qwen-3: in, out and back, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from tinyllama_mcore.checkpoint.layout import find
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.parameters import count_parameters
from tinyllama_mcore.config.recipes import RECIPES
from tinyllama_mcore.hf import families
from tinyllama_mcore.hf.config import from_hf_config, parameter_count, to_hf_config
from tinyllama_mcore.hf.export import ExportJob, export, model_of
from tinyllama_mcore.hf.importing import import_hf

TIED = {"tie_word_embeddings": True}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, tuple[type[transformers.PreTrainedModel], dict[str, Any]]] = {
    "tied Llama": (LlamaForCausalLM, TIED),
    "Llama with wide heads": (LlamaForCausalLM, {"head_dim": 24}),
    "Llama 3.2": (
        LlamaForCausalLM,
        {
            **TIED,
            "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 64, "rope_theta": 5e5},
            "num_key_value_heads": 4,
        },
    ),
    "Qwen 2": (Qwen2ForCausalLM, {}),
    "tied Qwen 2": (Qwen2ForCausalLM, TIED),
    "Qwen 3": (Qwen3ForCausalLM, {"head_dim": 16}),
    "tied Qwen 3": (Qwen3ForCausalLM, {**TIED, "head_dim": 8}),
    "more rows than pieces": (Qwen3ForCausalLM, {**TIED, "head_dim": 8, "vocab_size": 1024}),
}
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,  # model card: 1.23B
    "qwen2.5-0.5b": 494_032_768,  # model card: 0.49B
    "qwen3-0.6b": 596_049_920,  # model card: 0.6B
    "smollm2-135m": 134_515_008,  # safetensors of the released model
    "smollm2-360m": 361_821_120,  # likewise
}
"""Recipe -> elements of the released model."""


@pytest.fixture(scope="module")
def source_of(make_llama: Callable[..., Path]) -> Callable[[str], Path]:
    """A random model of a row of MODELS, saved by transformers."""
    made: dict[str, Path] = {}

    def source(name: str) -> Path:
        if name not in made:
            kind, changes = MODELS[name]
            made[name] = make_llama(kind, **changes)
        return made[name]

    return source


@pytest.mark.parametrize("name", MODELS)
def test_in_and_out_again(name: str, source_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Megatron's logits are transformers' both ways, and every tensor comes back bit for bit, under its own name."""
    source = source_of(name)
    found = import_hf(source, tmp_path / "run").parity
    assert found is not None
    assert found.largest_difference <= 1e-5
    assert export(ExportJob(load=tmp_path / "run", output=tmp_path / "hf", dtype="fp32")).parity is not None
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "hf"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(theirs) is MODELS[name][0]


@pytest.mark.parametrize("name", ["tied Llama", "tied Qwen 3"])
def test_a_head_that_is_saved_beside_its_embedding(name: str, source_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Some files have it twice: taken where the two are equal, refused where they differ."""
    shutil.copytree(source_of(name), tmp_path / "twice")
    weights = load_file(tmp_path / "twice" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "twice" / "model.safetensors", metadata={"format": "pt"})
    import_hf(tmp_path / "twice", tmp_path / "run")
    assert "model.output_layer.weight" not in set(CheckpointReader(find(tmp_path / "run")).keys())
    weights["lm_head.weight"][3, 5] += 0.01
    save_file(weights, tmp_path / "twice" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"tie_word_embeddings true, but lm_head\.weight is not model\.embed_tokens"):
        import_hf(tmp_path / "twice", tmp_path / "other")


def test_a_checkpoint_says_which_family_it_is_of(source_of: Callable[[str], Path], tmp_path: Path) -> None:
    """By what its model has, not by a name."""
    for name in ("tied Llama", "Qwen 2", "Qwen 3"):
        import_hf(source_of(name), tmp_path / name, verify=False)
        model = model_of(CheckpointReader(find(tmp_path / name)))
        assert families.of_model(model).architecture == MODELS[name][0].__name__


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("Qwen 3", {"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'; only dense models of 'llama', 'qwen2'"),
        ("Qwen 3", {"attention_bias": True}, "attention_bias is True"),
        ("Qwen 2", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("Qwen 2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types names 'sliding_attention'"),
        ("Qwen 3", {"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ("Qwen 3", {"head_dim": 15}, "kv_channels 15 of imported is odd"),
        ("Qwen 3", {"head_dim": "wide"}, "head_dim is 'wide'"),
        ("Qwen 2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("tied Llama", {"attention_bias": True}, "attention_bias is True"),
        ("tied Llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("tied Llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ("tied Llama", {"tie_word_embeddings": False}, "no tensor lm_head.weight"),
        (
            "tied Llama",
            {"num_attention_heads": 7, "num_key_value_heads": 1},
            "is not a multiple of num_attention_heads",
        ),
    ],
)
def test_what_is_none_is_refused_by_name(
    name: str, changes: dict, named: str, source_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """One message, which names what is wrong."""
    shutil.copytree(source_of(name), tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConfigError) as refused:
        import_hf(tmp_path / "source", tmp_path / "run")
    assert named in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_counts_what_was_released(name: str) -> None:
    """And transformers builds as many from the config that is exported; which reads back as the recipe's model."""
    model = RECIPES[name].model
    config = to_hf_config(model, dtype="bf16", roles={})
    kind = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        built = kind(kind.config_class(**config))
    assert sum(parameter.numel() for parameter in built.parameters()) == PUBLISHED[name]
    assert count_parameters(model) == parameter_count(config) == PUBLISHED[name]
    read = from_hf_config(config, "config.json")
    assert read == from_hf_config(built.config.to_dict(), "config.json")
    assert (read.head_dim, read.rope_scaling) == (model.head_dim, model.rope_scaling)
