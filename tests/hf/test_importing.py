"""Other people's Llamas come in exactly; what is none is refused by the name of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tinyllama_mcore.checkpoint.layout import find
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config import records
from tinyllama_mcore.config.schema import ConfigError, RunConfig
from tinyllama_mcore.hf import parity
from tinyllama_mcore.hf.export import model_of
from tinyllama_mcore.hf.importing import import_hf


def test_the_training_model_computes_what_the_import_computed(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Megatron's logits from the checkpoint equal transformers' from the source."""
    source = make_llama(num_key_value_heads=4)
    import_hf(source, tmp_path)
    reader = CheckpointReader(find(tmp_path))
    tokens = parity.probe_tokens(model_of(reader))
    ours = parity.megatron_logits(model_of(reader), lambda name: reader.tensor(f"model.{name}"), tokens)
    assert (ours - parity.hf_logits(source, tokens)).abs().max() <= 1e-5


def test_the_checkpoint_is_at_iteration_0_and_names_a_whole_run(
    make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """No moments, and a configuration that reads back as a RunConfig."""
    source = make_llama()
    import_hf(source, tmp_path)
    manifest = CheckpointReader(find(tmp_path, 0)).manifest
    assert (manifest.state.iteration, manifest.kinds) == (0, ("model",))
    run = records.from_plain(RunConfig, manifest.run, "manifest")
    assert (run.model.vocab_size, run.data.tokenizer_model) == (800, str(source / "tokenizer.model"))


def test_weights_in_bf16_come_in_exactly(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Widening loses nothing."""
    source = make_llama()
    LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    import_hf(source, tmp_path)
    head = CheckpointReader(find(tmp_path)).tensor("model.output_layer.weight")
    assert head.dtype is torch.float32
    assert torch.equal(head, load_file(source / "model.safetensors")["lm_head.weight"].float())


def test_a_taken_output_is_refused(checkpoint: Path, make_llama: Callable[..., Path]) -> None:
    """A run's checkpoints are never written over."""
    with pytest.raises(ConfigError, match="already holds a checkpoint"):
        import_hf(make_llama(), checkpoint)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"attention_bias": True}, "attention_bias"), ({"tie_word_embeddings": True}, "tie_word_embeddings")],
)
def test_real_models_of_another_kind_are_refused(
    changes: dict, named: str, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """Models that transformers saved, with biases and with tied embeddings."""
    with pytest.raises(ConfigError, match=named):
        import_hf(make_llama(**changes), tmp_path)


@pytest.mark.parametrize(
    ("rename", "named"),
    [
        (("lm_head.weight", None), "no tensor lm_head.weight"),
        (("lm_head.weight", "lm_head.bias"), "the first: lm_head.bias"),
    ],
)
def test_tensors_that_are_missing_or_foreign_are_named(
    rename: tuple[str, str | None], named: str, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """The message names the tensor."""
    source = make_llama()
    weights = load_file(source / "model.safetensors")
    moved = weights.pop(rename[0])
    save_file(weights | ({rename[1]: moved} if rename[1] else {}), source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=named):
        import_hf(source, tmp_path)


def test_a_config_of_other_sizes_is_named(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """config.json that does not fit the tensors: both shapes are told."""
    source = make_llama()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"intermediate_size": 95}))
    with pytest.raises(ConfigError, match=r"gate_proj\.weight: \[96, 64\].*\[95, 64\]"):
        import_hf(source, tmp_path)


def test_directories_without_a_model_are_refused(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """No config, half a file, no safetensors, an index that points outside."""
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        import_hf(tmp_path, tmp_path / "run")
    source = make_llama()
    (source / "model.safetensors").write_bytes(b"half a fi")
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        import_hf(source, tmp_path / "run")
    (source / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"pickled weights \(\.bin\) are not read"):
        import_hf(source, tmp_path / "run")
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "../secret.safetensors"}}')
    with pytest.raises(ConfigError, match=r"names '\.\./secret\.safetensors'"):
        import_hf(source, tmp_path / "run")
