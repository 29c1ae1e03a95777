"""Other people's Llamas come in exactly; what is none is refused by the name of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tinyllama_mcore.checkpoint import writer
from tinyllama_mcore.checkpoint.layout import find
from tinyllama_mcore.checkpoint.manifest import Manifest
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config import records
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import ModelConfig, RunConfig
from tinyllama_mcore.hf import importing, names
from tinyllama_mcore.hf.config import from_hf_config
from tinyllama_mcore.hf.importing import import_hf
from tinyllama_mcore.hf.parity import Mismatch
from tinyllama_mcore.hf.weights import WeightFiles


def given_by_name(source: Path) -> importing.Saved:
    """A model's weights as another trainer's files would give them."""
    return importing.Saved(tensors={"model": WeightFiles(source)}, updates=0)


def one_weight(planted: pytest.MonkeyPatch) -> None:
    """One element of 76,000 off by a hundredth."""
    right = importing.read_tensors

    def read(saved: importing.Saved, model: ModelConfig) -> dict[str, torch.Tensor]:
        tensors = right(saved, model)
        tensors["model.decoder.layers.1.mlp.linear_fc2.weight"][3, 5] += 0.01
        return tensors

    planted.setattr(importing, "read_tensors", read)


def gate_and_up(planted: pytest.MonkeyPatch) -> None:
    """A table of names with the two halves of SwiGLU's first matrix exchanged."""
    gate, up = (f"decoder.layers.{{layer}}.mlp.linear_fc1.{part}.weight" for part in ("gate", "up"))
    rows = dict(names.ROWS)
    planted.setitem(names.ROWS, gate, rows[up])  # type: ignore[arg-type]
    planted.setitem(names.ROWS, up, rows[gate])  # type: ignore[arg-type]


def group_order(planted: pytest.MonkeyPatch) -> None:
    """A table that deals query heads to the groups in turn instead of in blocks."""
    key = "decoder.layers.{layer}.self_attention.linear_qkv.weight"

    def join(parts: tuple[torch.Tensor, ...], model: ModelConfig) -> torch.Tensor:
        query, *rest = parts
        heads = query.unflatten(0, (-1, model.num_query_groups, model.head_dim))
        return names.join_qkv((heads.transpose(0, 1).flatten(0, 2), *rest), model)

    layout = replace(names.QKV_BY_GROUP, join=join)
    planted.setitem(names.ROWS, key, replace(names.ROWS[key], layout=layout))  # type: ignore[arg-type]


def rope_base(planted: pytest.MonkeyPatch) -> None:
    """A config read with another base."""
    planted.setattr(importing, "from_hf_config", lambda *read: replace(from_hf_config(*read), rotary_base=1e6))


@pytest.mark.parametrize("given", [False, True], ids=["files", "weights"])
def test_the_training_model_computes_what_the_source_computes(
    given: bool, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """Megatron's logits from the checkpoint equal transformers', of its own reading and of weights by name."""
    source = make_llama(num_key_value_heads=4, rope_theta=50_000.0)
    found = import_hf(source, tmp_path, given_by_name(source) if given else None).parity
    assert found is not None
    assert found.largest_difference <= 1e-5
    assert found.logits == 2 * 128 * 800


@pytest.mark.parametrize("given", [False, True], ids=["files", "weights"])
@pytest.mark.parametrize("plant", [one_weight, gate_and_up, group_order, rope_base])
def test_a_wrong_import_is_refused(
    plant: Callable[[pytest.MonkeyPatch], None], given: bool, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """Each fault gives a checkpoint that loads; the logits tell, and nothing is left."""
    source = make_llama()
    with pytest.MonkeyPatch.context() as planted, pytest.raises(Mismatch, match="differ from those of the model"):
        plant(planted)
        import_hf(source, tmp_path / "run", given_by_name(source) if given else None)
    assert list(tmp_path.iterdir()) == []


def test_every_weight_is_read_back(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Planted: a row of the embedding that no fixed token has to name is written wrongly. Without logits too."""
    right = writer.save_alone

    def save(directory: Path, tensors: dict[str, torch.Tensor], manifest: Manifest) -> Path:
        key = "model.embedding.word_embeddings.weight"
        return right(directory, tensors | {key: tensors[key].index_fill(0, torch.tensor(799), 0.0)}, manifest)

    with pytest.MonkeyPatch.context() as planted, pytest.raises(Mismatch, match=r"word_embeddings\.weight was not"):
        planted.setattr(writer, "save_alone", save)
        import_hf(make_llama(), tmp_path / "run", verify=False)
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(ConfigError, match="not empty"):
        import_hf(make_llama(), checkpoint)


@pytest.mark.parametrize(
    ("changes", "named"), [({"attention_bias": True}, "attention_bias"), ({"mlp_bias": True}, "mlp_bias")]
)
def test_real_models_of_another_kind_are_refused(
    changes: dict, named: str, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """Models that transformers saved, with biases that none of ours has."""
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
    with pytest.raises(ConfigError, match=r"gate_proj\.weight: shape \[96, 64\].*\[95, 64\]"):
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
