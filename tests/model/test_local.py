"""Activation and rotation of local layers, both ways, against plain formulas, transformers' functions and float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tinyllama_mcore.config import recipes
from tinyllama_mcore.config.schema import ModelConfig
from tinyllama_mcore.model.context import own_chunks
from tinyllama_mcore.model.local import SwiGLU, rotated
from tinyllama_mcore.model.rope import Rotary

SHAPE = dataclasses.replace(recipes.RECIPES["tinyllama-debug"].model, max_position_embeddings=64)


def rotary(dtype: torch.dtype, shape: ModelConfig = SHAPE) -> Rotary:
    """On the CPU."""
    return Rotary(shape, dtype, torch.device("cpu"))


def test_swiglu_is_that_of_the_paper_and_its_gradient_is_exact() -> None:
    """Values of silu(gate) * up; the gradient by finite differences in float64."""
    gate_up = torch.randn(3, 2, 10, dtype=torch.float64, requires_grad=True)
    gate, up = gate_up.chunk(2, dim=-1)
    torch.testing.assert_close(SwiGLU()(gate_up), gate * torch.sigmoid(gate) * up)
    assert torch.autograd.gradcheck(SwiGLU(), gate_up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_rounds_as_autograd_does(dtype: torch.dtype) -> None:
    """Forward and backward are those of torch's own functions one after the other, to the bit."""
    ours = torch.randn(64, 2, 128, dtype=dtype, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    gate, up = theirs.chunk(2, dim=-1)
    expected, found = torch.nn.functional.silu(gate) * up, SwiGLU()(ours)
    weights = torch.randn_like(expected)
    found.backward(weights)
    expected.backward(weights)
    assert torch.equal(found, expected)
    assert torch.equal(ours.grad, theirs.grad)


def test_rotation_is_that_of_transformers() -> None:
    """`apply_rotary_pos_emb` with the table of `LlamaRotaryEmbedding`; its gradient is exact in float64."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    length, batch, heads, width = 16, 2, 3, SHAPE.head_dim
    config = LlamaConfig(
        hidden_size=heads * width,
        num_attention_heads=heads,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": SHAPE.rotary_base},
    )
    query = torch.randn(length, batch, heads, width)
    cos, sin = llama.LlamaRotaryEmbedding(config)(query, torch.arange(length)[None])
    expected, _ = llama.apply_rotary_pos_emb(*[query.permute(1, 2, 0, 3)] * 2, cos, sin)
    found = rotated(query, *rotary(torch.float32).angles(length, rank=0, size=1))
    torch.testing.assert_close(found.permute(1, 2, 0, 3), expected)
    exact = torch.randn(4, 1, 2, width, dtype=torch.float64, requires_grad=True)
    angles = rotary(torch.float64).angles(4, rank=0, size=1)
    assert torch.autograd.gradcheck(lambda x: rotated(x, *angles), exact)


def test_positions_of_context_ranks_and_of_documents() -> None:
    """Each rank's two chunks have the positions that they have in the whole; documents begin at 0."""
    from tinyllama_mcore.model import documents

    table, whole = rotary(torch.float32), torch.randn(16, 1, 2, SHAPE.head_dim)

    def turned_alone(x: torch.Tensor) -> torch.Tensor:
        return rotated(x, *table.angles(len(x), rank=0, size=1))

    for rank in range(2):
        own = rotated(own_chunks(whole, rank, 2, dim=0), *table.angles(16, rank=rank, size=2))
        assert torch.equal(own, own_chunks(turned_alone(whole), rank, 2, dim=0))
    starts = torch.tensor([0, 5, 6, 16], dtype=torch.int32)
    each = rotated(whole.squeeze(1), *table.angles_of(documents.packed(starts).positions))
    for first, end in ((0, 5), (5, 6), (6, 16)):
        assert torch.equal(each[first:end], turned_alone(whole[first:end]).squeeze(1))
