"""A right model is taken whatever the size of its logits, and one swapped head is seen: import, export, probe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tinyllama_mcore.checkpoint.probe import Probe, positions
from tinyllama_mcore.config.schema import ModelConfig
from tinyllama_mcore.hf import names, parity, rounding
from tinyllama_mcore.hf.config import from_hf_config
from tinyllama_mcore.hf.export import ExportJob, export
from tinyllama_mcore.hf.importing import import_hf
from tinyllama_mcore.hf.weights import WeightFiles

QUERY = "model.layers.3.self_attn.q_proj.weight"
WIDTH = 32
"""Rows of a head."""
LOGITS = {"small": (0.02, 0.02), "trained": (0.09, 0.26), "large": (0.09, 5.0)}
"""Size of a model's logits -> spread of the weights in its layers, and in its head. Trained: as Llama's, about 3."""


@pytest.fixture(scope="module", params=LOGITS)
def source(request: pytest.FixtureRequest, make_llama: Callable[..., Path]) -> Path:
    """A model of 8 layers with logits of a known size."""
    directory = make_llama(
        hidden_size=128, intermediate_size=352, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2
    )
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    inside, head = LOGITS[request.param]
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, head if "lm_head" in name else inside)
    model.save_pretrained(directory)
    return directory


def config_of(directory: Path) -> ModelConfig:
    """What config.json says."""
    return from_hf_config(json.loads((directory / "config.json").read_text()), "config.json")


def megatron_logits(directory: Path) -> torch.Tensor:
    """The training model's, from the files of a directory."""
    files, model = WeightFiles(directory), config_of(directory)
    return parity.megatron_logits(
        model, lambda name: names.from_hf(name, files.tensor, model), parity.probe_tokens(model)
    )


def swap_heads(weights: dict[str, torch.Tensor]) -> None:
    """Two query heads of a group, in one layer of eight, exchanged."""
    weights[QUERY] = torch.cat([weights[QUERY][WIDTH : 2 * WIDTH], weights[QUERY][:WIDTH], weights[QUERY][2 * WIDTH :]])


def changed(source: Path, to: Path, *changes: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The model of `source` with other weights."""
    weights = load_file(source / "model.safetensors")
    for change in changes:
        change(weights)
    to.mkdir()
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.model"):
        (to / name).write_bytes((source / name).read_bytes())
    return to


def test_a_right_model_goes_in_and_out(source: Path, tmp_path: Path) -> None:
    """Every bound of the door, on logits of three sizes."""
    imported = import_hf(source, tmp_path / "run").parity
    exported = export(ExportJob(load=tmp_path / "run", output=tmp_path / "out", dtype="fp32")).parity
    assert imported is not None
    assert exported is not None
    assert imported.rounding == exported.rounding > 0
    llama, tokens = parity.load_model(source), parity.probe_tokens(config_of(source))
    kept = megatron_logits(source)[:, positions(tokens.shape[1])]
    for dtype in ("fp32", "bf16"):
        probe = Probe(tokens=tokens, logits=kept, precision="fp32")
        if dtype == "bf16":  # as the export rounds
            parity.round_weights(llama, torch.bfloat16)
        assert (parity.replay(llama, probe, dtype).deviation > 0) or dtype == "fp32"


def test_rounding_is_measured_without_a_trace(source: Path) -> None:
    """The second evaluation changes no weight, and is far nearer to the first than the logits are large."""
    llama, tokens = parity.load_model(source), parity.probe_tokens(config_of(source))
    before = {name: weight.clone() for name, weight in llama.state_dict().items()}
    logits = parity.model_logits(llama, tokens)
    assert 0 < rounding.of_fp32(llama, tokens, logits) < 1e-4 * logits.abs().max().item()
    assert all(torch.equal(weight, before[name]) for name, weight in llama.state_dict().items())
    assert torch.equal(parity.model_logits(llama, tokens), logits)


@pytest.mark.parametrize("alike", [1.0, 1e-3], ids=["unlike", "alike to 0.1 %"])
def test_one_swapped_head_is_seen(alike: float, source: Path, tmp_path: Path) -> None:
    """Planted in one layer of eight, between heads that differ by a share `alike` of their size."""

    def nearly_alike(weights: dict[str, torch.Tensor]) -> None:
        first, second = weights[QUERY][:WIDTH], weights[QUERY][WIDTH : 2 * WIDTH]
        weights[QUERY][WIDTH : 2 * WIDTH] = first + alike * (second - first)

    right = changed(source, tmp_path / "right", nearly_alike)
    wrong = changed(right, tmp_path / "wrong", swap_heads)
    made, tokens = megatron_logits(right), parity.probe_tokens(config_of(source))
    for directory, holds in ((right, True), (wrong, False)):
        llama = parity.load_model(directory)
        logits = parity.model_logits(llama, tokens)
        yardstick = rounding.of_fp32(llama, tokens, logits)
        apart = (made - logits).abs().max().item()
        assert parity.Parity(largest_difference=apart, logits=1, rounding=yardstick).holds is holds, apart / yardstick
        probe = Probe(tokens=tokens, logits=made[:, positions(tokens.shape[1])], precision="fp32")
        if holds:
            parity.replay(llama, probe, "fp32")
        else:
            with pytest.raises(parity.Mismatch, match=r"deviate by .* from those that the training run saved"):
                parity.replay(llama, probe, "fp32")
