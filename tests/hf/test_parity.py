"""The check of logits catches each way in which an export can be wrong and still load: faults planted in its files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinyllama_mcore.checkpoint.layout import find
from tinyllama_mcore.checkpoint.probe import Probe, positions
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.hf import parity, rounding
from tinyllama_mcore.hf.export import ExportJob, export, model_of

Weights = dict[str, torch.Tensor]
LAYER = "model.layers.1."


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A right export in fp32, of 8 heads in 2 groups."""
    output = tmp_path_factory.mktemp("exported") / "out"
    export(ExportJob(load=checkpoint, output=output, dtype="fp32", verify=False))
    return output


@pytest.fixture(scope="module")
def training_logits(checkpoint: Path) -> torch.Tensor:
    """What the Megatron model computes on the probe tokens."""
    reader = CheckpointReader(find(checkpoint))
    model = model_of(reader)
    return parity.megatron_logits(model, lambda name: reader.tensor(f"model.{name}"), parity.probe_tokens(model))


@pytest.fixture(scope="module")
def probe(checkpoint: Path, training_logits: torch.Tensor) -> Probe:
    """What a run in fp32 would have kept of those logits."""
    tokens = parity.probe_tokens(model_of(CheckpointReader(find(checkpoint))))
    return Probe(tokens=tokens, logits=training_logits[:, positions(tokens.shape[1])], precision="fp32")


def refused_by_both(directory: Path, training_logits: torch.Tensor, probe: Probe) -> None:
    """Either comparison alone refuses the model of a directory."""
    llama = parity.load_model(directory)
    logits = parity.model_logits(llama, probe.tokens)
    rounded = rounding.of_fp32(llama, probe.tokens, logits)
    with pytest.raises(parity.Mismatch, match="they differ by"):
        parity.check(logits, training_logits, rounded, "they differ")
    with pytest.raises(parity.Mismatch, match=r"deviate by .* from those that the training run saved"):
        parity.replay(llama, probe, "fp32")


def one_weight(weights: Weights) -> None:
    """One element of 76,000 off by a hundredth."""
    weights[LAYER + "mlp.down_proj.weight"][3, 5] += 0.01


def gate_and_up(weights: Weights) -> None:
    """The two halves of SwiGLU's first matrix exchanged."""
    gate, up = LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"
    weights[gate], weights[up] = weights[up].clone(), weights[gate].clone()


def group_order(weights: Weights) -> None:
    """Query heads dealt to the two groups in turn (0 2 4 6 1 3 5 7) instead of in blocks."""
    query = LAYER + "self_attn.q_proj.weight"
    weights[query] = weights[query].unflatten(0, (4, 2, 8)).transpose(0, 1).flatten(0, 2).contiguous()


def keys_and_values(weights: Weights) -> None:
    """The key heads of the two groups exchanged."""
    key = LAYER + "self_attn.k_proj.weight"
    weights[key] = weights[key].roll(8, dims=0).contiguous()


def interleaved_rotation(weights: Weights) -> None:
    """Rows in the order that rotates neighbours instead of halves (Meta's first format)."""
    key = LAYER + "self_attn.k_proj.weight"
    weights[key] = weights[key].unflatten(0, (2, 2, 4)).transpose(1, 2).flatten(0, 2).contiguous()


def test_a_right_export_passes(exported: Path, checkpoint: Path, training_logits: torch.Tensor, probe: Probe) -> None:
    """Within 1e-5, on logits that say something, and of the spread; a probe that is off by 2e-5 of it is seen."""
    reader = CheckpointReader(find(checkpoint))
    sides = (exported, model_of(reader), lambda name: reader.tensor(f"model.{name}"))
    found, replayed = parity.check_export(*sides, probe, "fp32")
    assert found.largest_difference <= 1e-5
    assert training_logits.abs().max() > 0.1
    assert replayed is not None
    assert replayed.deviation <= 1e-5
    off = dataclasses.replace(probe, logits=probe.logits + 2e-5 * probe.logits.std())
    with pytest.raises(parity.Mismatch, match=r"deviate by .* from those that the training run saved"):
        parity.check_export(*sides, off, "fp32")
    assert parity.check_export(*sides, None, "fp32") == (found, None)


@pytest.mark.parametrize("plant", [one_weight, gate_and_up, group_order, keys_and_values, interleaved_rotation])
def test_wrong_weights_are_caught(
    plant: Callable[[Weights], None], exported: Path, training_logits: torch.Tensor, probe: Probe, tmp_path: Path
) -> None:
    """Files that load without complaint and hold another model: by either comparison alone."""
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    plant(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused_by_both(tmp_path, training_logits, probe)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rms_norm_eps": 1e-3},
    ],
    ids=["rope base", "norm epsilon"],
)
def test_a_wrong_config_is_caught(
    wrong: dict, exported: Path, training_logits: torch.Tensor, probe: Probe, tmp_path: Path
) -> None:
    """The same weights, read with another base or epsilon."""
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | wrong))
    refused_by_both(tmp_path, training_logits, probe)


def test_what_is_not_a_number_is_no_parity() -> None:
    """NaN compares false with every bound, and what overflows in fp32 has none."""
    assert not parity.Parity(largest_difference=1.0, logits=1, rounding=float("inf")).holds
    assert not parity.Parity(largest_difference=float("nan"), logits=1, rounding=1.0).holds
