"""Our activation and rotation against the plain formulas, transformers' functions and float64, forward and backward."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tinyllama_mcore.config import recipes
from tinyllama_mcore.config.schema import ModelConfig
from tinyllama_mcore.model.rope import Rotary
from tinyllama_mcore.model.swiglu import SwiGLU

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
    (found,) = rotary(torch.float32).rotate(query)
    torch.testing.assert_close(found.permute(1, 2, 0, 3), expected)
    exact = torch.randn(4, 1, 2, width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotary(torch.float64).rotate(x)[0], exact)


def test_positions_of_context_ranks_and_of_documents() -> None:
    """Each rank's two chunks have the positions that they have in the whole; documents begin at 0."""
    from tinyllama_mcore.model import documents
    from tinyllama_mcore.model.context import own_chunks

    table, whole = rotary(torch.float32), torch.randn(16, 1, 2, SHAPE.head_dim)
    (turned,) = table.rotate(whole)
    for rank in range(2):
        (own,) = table.rotate(own_chunks(whole, rank, 2, dim=0), rank=rank, size=2)
        assert torch.equal(own, own_chunks(turned, rank, 2, dim=0))
    starts = torch.tensor([0, 5, 6, 16], dtype=torch.int32)
    (each,) = table.rotate_each(whole.squeeze(1), positions=documents.packed(starts).positions)
    for first, end in ((0, 5), (5, 6), (6, 16)):
        assert torch.equal(each[first:end], table.rotate(whole[first:end])[0].squeeze(1))
