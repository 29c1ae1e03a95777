"""The logical parameters: one stable, layout-free name for each tensor of the model, whatever ranks hold it.

A checkpoint holds these, `hf` translates these, `initialize` draws these. A rank's module parameter is one or more
*parts*: equal chunks along dim 0 of the local tensor, each a shard of one logical parameter. Only SwiGLU's first matrix
has two (`gate` and `up`), because Megatron keeps both in one local tensor and cuts each over the tensor-parallel ranks.
Shapes: v vocab, h hidden, n query heads, g query groups, d head dim, f ffn. Local sizes are the global ones over tp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tinyllama_mcore.config.schema import ModelConfig


@dataclass(frozen=True, kw_only=True)
class LogicalParameter:
    """One tensor of the model, unsharded and unpadded."""

    name: str
    """Megatron's module path with the global layer number, e.g. `decoder.layers.17.mlp.linear_fc1.gate.weight`."""
    shape: tuple[int, ...]
    tp_dim: int | None
    """Dim that tensor-parallel ranks cut into contiguous chunks; None: every rank holds the whole."""
    kind: str
    """Role, for tables that treat parameters alike: embedding, qkv, proj, gate, up, fc2, norm, head."""

    @property
    def numel(self) -> int:
        """Elements of the whole tensor."""
        return int(torch.Size(self.shape).numel())


def known_vocab_size(model: ModelConfig) -> int:
    """The vocabulary size, which must have been filled in from the tokenizer by now."""
    if model.vocab_size is None:
        raise ValueError("the vocabulary size is not known yet: it comes from the tokenizer that made the data")
    return model.vocab_size


def layer_parameters(model: ModelConfig, layer: int) -> Iterator[LogicalParameter]:
    """The parameters of decoder layer `layer` (global number, from 0)."""
    h, f, d = model.hidden_size, model.ffn_hidden_size, model.kv_channels
    n, g = model.num_attention_heads, model.num_query_groups
    prefix = f"decoder.layers.{layer}."
    for suffix, shape, tp_dim, kind in (
        ("input_layernorm.weight", (h,), None, "norm"),
        # per query group: n/g query heads, then one key head, then one value head
        ("self_attention.linear_qkv.weight", ((n + 2 * g) * d, h), 0, "qkv"),
        ("self_attention.linear_proj.weight", (h, n * d), 1, "proj"),
        ("pre_mlp_layernorm.weight", (h,), None, "norm"),
        ("mlp.linear_fc1.gate.weight", (f, h), 0, "gate"),
        ("mlp.linear_fc1.up.weight", (f, h), 0, "up"),
        ("mlp.linear_fc2.weight", (h, f), 1, "fc2"),
    ):
        yield LogicalParameter(name=prefix + suffix, shape=shape, tp_dim=tp_dim, kind=kind)


def logical_parameters(model: ModelConfig) -> tuple[LogicalParameter, ...]:
    """Every parameter of the model, in the order of the forward pass. 1,100,048,384 elements for tinyllama-1.1b."""
    v, h = known_vocab_size(model), model.hidden_size
    first = LogicalParameter(name="embedding.word_embeddings.weight", shape=(v, h), tp_dim=0, kind="embedding")
    layers = (p for layer in range(model.num_layers) for p in layer_parameters(model, layer))
    norm = LogicalParameter(name="decoder.final_layernorm.weight", shape=(h,), tp_dim=None, kind="norm")
    head = LogicalParameter(name="output_layer.weight", shape=(v, h), tp_dim=0, kind="head")
    return (first, *layers, norm, head)


def part_names(module_name: str) -> tuple[str, ...]:
    """Logical names of the parts that a module's parameter holds, in order along its dim 0."""
    fc1 = re.fullmatch(r"(.*mlp\.linear_fc1)\.weight", module_name)
    return (f"{fc1[1]}.gate.weight", f"{fc1[1]}.up.weight") if fc1 else (module_name,)


def shard_of(full: torch.Tensor, tp_dim: int | None, tp_rank: int, tp_size: int) -> torch.Tensor:
    """The contiguous shard of a logical tensor that a tensor-parallel rank holds; the last one may be shorter."""
    if tp_dim is None:
        return full
    size = -(-full.shape[tp_dim] // tp_size)
    start = min(tp_rank * size, full.shape[tp_dim])
    return full.narrow(tp_dim, start, min(size, full.shape[tp_dim] - start))


def pad_rows(shard: torch.Tensor, parameter: LogicalParameter, tp_size: int) -> torch.Tensor:
    """A shard with zero rows appended up to the size that every tensor-parallel rank's module has."""
    if parameter.tp_dim != 0:
        return shard
    missing = -(-parameter.shape[0] // tp_size) - shard.shape[0]
    return torch.cat([shard, shard.new_zeros(missing, *shard.shape[1:])])
