"""Every parameter of the model: one stable, layout-free name for each tensor, its shape, and how it may be cut.

A checkpoint holds these, `hf` translates these, `initialize` draws these; plans, FLOPs and the start-up print count
them. Neighbour: `model.parameters` cuts their tensors for a rank. Shapes: v vocab, h hidden, n query heads, g query
groups, d head dim, f ffn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tinyllama_mcore.config.schema import ModelConfig

MATMUL_KINDS = frozenset({"qkv", "proj", "gate", "up", "fc2", "head"})
"""Kinds of parameter that multiply every token. The embedding is looked up; norms and biases are not matrices."""


@dataclass(frozen=True, kw_only=True)
class LogicalParameter:
    """One tensor of the model, unsharded and unpadded."""

    name: str
    """Megatron's module path with the global layer number, e.g. `decoder.layers.17.mlp.linear_fc1.gate.weight`."""
    shape: tuple[int, ...]
    tp_dim: int | None
    """Dim that tensor-parallel ranks cut into contiguous chunks; None: every rank holds the whole."""
    kind: str
    """Role, for tables that treat parameters alike: embedding, qkv, bias, proj, gate, up, fc2, norm, head."""

    @property
    def numel(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)


def known_vocab_size(model: ModelConfig) -> int:
    """The vocabulary size, which must have been filled in from the tokenizer by now."""
    if model.vocab_size is None:
        raise ValueError("the vocabulary size is not known yet: it comes from the tokenizer that made the data")
    return model.vocab_size


def layer_parameters(model: ModelConfig, layer: int) -> Iterator[LogicalParameter]:
    """The parameters of decoder layer `layer` (global number, from 0)."""
    h, f, d = model.hidden_size, model.ffn_hidden_size, model.head_dim
    n, g = model.num_attention_heads, model.num_query_groups
    prefix = f"decoder.layers.{layer}."
    for has, suffix, shape, tp_dim, kind in (
        (True, "input_layernorm.weight", (h,), None, "norm"),
        # per query group: n/g query heads, then one key head, then one value head
        (True, "self_attention.linear_qkv.weight", ((n + 2 * g) * d, h), 0, "qkv"),
        (model.add_qkv_bias, "self_attention.linear_qkv.bias", ((n + 2 * g) * d,), 0, "bias"),
        (model.qk_layernorm, "self_attention.q_layernorm.weight", (d,), None, "norm"),
        (model.qk_layernorm, "self_attention.k_layernorm.weight", (d,), None, "norm"),
        (True, "self_attention.linear_proj.weight", (h, n * d), 1, "proj"),
        (True, "pre_mlp_layernorm.weight", (h,), None, "norm"),
        (True, "mlp.linear_fc1.gate.weight", (f, h), 0, "gate"),
        (True, "mlp.linear_fc1.up.weight", (f, h), 0, "up"),
        (True, "mlp.linear_fc2.weight", (h, f), 1, "fc2"),
    ):
        if has:
            yield LogicalParameter(name=prefix + suffix, shape=shape, tp_dim=tp_dim, kind=kind)


def logical_parameters(model: ModelConfig) -> tuple[LogicalParameter, ...]:
    """Every parameter of the model, in the order of the forward pass. 1,100,048,384 elements for tinyllama-1.1b.

    Where head and embedding are tied, the embedding stands for both.
    """
    v, h = known_vocab_size(model), model.hidden_size
    first = LogicalParameter(name="embedding.word_embeddings.weight", shape=(v, h), tp_dim=0, kind="embedding")
    layers = (p for layer in range(model.num_layers) for p in layer_parameters(model, layer))
    norm = LogicalParameter(name="decoder.final_layernorm.weight", shape=(h,), tp_dim=None, kind="norm")
    head = LogicalParameter(name="output_layer.weight", shape=(v, h), tp_dim=0, kind="head")
    return (first, *layers, norm, *[head] * model.untie_embeddings_and_output_weights)


def count_parameters(model: ModelConfig) -> int:
    """Elements of the whole model: 1,100,048,384 for tinyllama-1.1b."""
    return sum(p.numel for p in logical_parameters(model))


def count_matmul_parameters(model: ModelConfig) -> int:
    """Elements that take part in matrix products, head included: 1,034,420,224 for tinyllama-1.1b."""
    kinds = MATMUL_KINDS if model.untie_embeddings_and_output_weights else MATMUL_KINDS | {"embedding"}
    return sum(p.numel for p in logical_parameters(model) if p.kind in kinds)
