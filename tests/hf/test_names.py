"""The table of names: complete, exact both ways, and in the order of rows that transformers computes with."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinyllama_mcore.config.parameters import logical_parameters
from tinyllama_mcore.config.recipes import RECIPES
from tinyllama_mcore.config.schema import ModelConfig
from tinyllama_mcore.hf import names


def model_of(groups: int) -> ModelConfig:
    """A small model with 8 query heads."""
    debug = RECIPES["tinyllama-debug"].model
    return dataclasses.replace(debug, num_layers=2, hidden_size=32, num_query_groups=groups, vocab_size=50)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_there_and_back_is_exact(groups: int) -> None:
    """Bit for bit, for one, some and all heads in a group, in the order of the forward pass."""
    model = model_of(groups)
    ours = {p.name: torch.randn(p.shape) for p in logical_parameters(model)}
    theirs = {
        name: part for logical, tensor in ours.items() for name, part in names.to_hf(logical, tensor, model).items()
    }
    assert tuple(theirs) == names.hf_names(model)
    for logical, tensor in ours.items():
        assert torch.equal(names.from_hf(logical, theirs.__getitem__, model), tensor)


def test_names_and_shapes_are_those_of_transformers() -> None:
    """Nothing missing, nothing more, each of its shape."""
    model = model_of(2)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    with torch.device("meta"):
        reference = {name: tuple(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
        written = {
            name: tuple(part.shape)
            for p in logical_parameters(model)
            for name, part in names.to_hf(p.name, torch.empty(p.shape), model).items()
        }
    assert written == reference


def test_qkv_rows_lie_by_group() -> None:
    """Two groups of two query heads with d = 1: q0 q1 k0 v0 q2 q3 k1 v1, written out by hand."""
    model = dataclasses.replace(model_of(2), hidden_size=4, num_attention_heads=4)
    fused = torch.tensor([[0.0], [1.0], [10.0], [20.0], [2.0], [3.0], [11.0], [21.0]])
    query, key, value = names.split_qkv(fused, model)
    assert query.flatten().tolist() == [0, 1, 2, 3]
    assert key.flatten().tolist() == [10, 11]
    assert value.flatten().tolist() == [20, 21]


def test_a_name_that_the_table_does_not_know_is_an_error() -> None:
    """Megatron's fused name is not a logical one."""
    with pytest.raises(KeyError):
        names.row_of("decoder.layers.3.mlp.linear_fc1.weight")
