"""The logical parameters: their count is the paper's model, their shards tile the whole, their start is the seed's."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tinyllama_mcore.config.parameters import logical_parameters
from tinyllama_mcore.config.recipes import RECIPES
from tinyllama_mcore.model import initialize
from tinyllama_mcore.model.parameters import pad_rows, shard_of

PAPER = RECIPES["tinyllama-1.1b"].model
SMALL = dataclasses.replace(RECIPES["tinyllama-debug"].model, vocab_size=509)


def test_the_model_has_1_100_048_384_parameters() -> None:
    """2 x 65,536,000 + 22 x 44,044,288 + 2,048."""
    assert sum(p.numel for p in logical_parameters(PAPER)) == 1_100_048_384
    assert len({p.name for p in logical_parameters(PAPER)}) == 3 + 7 * 22


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_shards_tile_the_whole(tp: int) -> None:
    """Concatenated shards are the tensor, and padding makes all of one size."""
    for parameter in logical_parameters(SMALL):
        whole = torch.randn(parameter.shape)
        shards = [shard_of(whole, parameter.tp_dim, rank, tp) for rank in range(tp)]
        if parameter.tp_dim is None:
            assert all(torch.equal(shard, whole) for shard in shards)
        else:
            assert torch.equal(torch.cat(shards, parameter.tp_dim), whole)
            assert len({pad_rows(shard, parameter, tp).shape for shard in shards}) == 1


@pytest.mark.parametrize("method", ["tinyllama", "megatron", "torch"])
def test_initial_weights_follow_their_table(method: str) -> None:
    """Standard deviations as cited, of 512-wide matrices; the same seed gives the same bits, another does not."""
    model = dataclasses.replace(
        PAPER, hidden_size=512, ffn_hidden_size=1024, num_layers=4, vocab_size=1000, init_method=method
    )
    for parameter in logical_parameters(model)[:8]:
        value = initialize.initial_value(parameter, model, 7)
        assert torch.equal(value, initialize.initial_value(parameter, model, 7))
        if parameter.kind == "norm":
            assert torch.equal(value, torch.ones(parameter.shape))
            continue
        assert not torch.equal(value, initialize.initial_value(parameter, model, 8))
        assert math.isclose(value.std().item(), _std(method, parameter.kind, parameter.shape), rel_tol=0.02)


@pytest.mark.parametrize("method", ["tinyllama", "megatron", "torch"])
def test_what_other_models_start_with(method: str) -> None:
    """Norms of heads at one, biases at zero, and of a tied model one matrix, of the size that a head has."""
    tied = {"untie_embeddings_and_output_weights": False, "hidden_size": 512, "vocab_size": 4000, "init_method": method}
    prefix = "decoder.layers.0.self_attention."
    for switch, names in (("add_qkv_bias", {"linear_qkv.bias"}), ("qk_layernorm", {"q_layernorm", "k_layernorm"})):
        model = dataclasses.replace(SMALL, **tied, **{switch: True})
        parameters = {p.name: p for p in logical_parameters(model)}
        more = parameters.keys() - {p.name for p in logical_parameters(SMALL)}
        first = {name.removeprefix(prefix).removesuffix(".weight") for name in more if name.startswith(prefix)}
        assert first == names
        assert len(more) == len(names) * model.num_layers
        for name in more:
            value = initialize.initial_value(parameters[name], model, 7)
            assert torch.equal(value, torch.full_like(value, float("layernorm" in name)))
        assert "output_layer.weight" not in parameters
        matrix = initialize.initial_value(parameters["embedding.word_embeddings.weight"], model, 7)
        assert math.isclose(matrix.std().item(), _std(method, "head", matrix.shape), rel_tol=0.02)


def _std(method: str, kind: str, shape: tuple[int, ...]) -> float:
    """Of the table in initialize.py, for h = 512 and L = 4, worked out by hand."""
    residual = kind in ("proj", "fc2")
    return {
        "tinyllama": 1 / (22.62741699796952 * 4) if residual else 0.02795084971874737,
        "megatron": 0.02 / 2.8284271247461903 if residual else 0.02,
        "torch": 1.0 if kind == "embedding" else 1 / math.sqrt(3 * shape[1]),
    }[method]
