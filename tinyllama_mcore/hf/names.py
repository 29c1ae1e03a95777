"""The one table between our logical parameters and Hugging Face's tensors, with the layout of each row.

Why: an export, an import and a parity check must never disagree about a name or an order of rows, so all three read
this table. Neighbours: `config.parameters` owns the left column; `export` and `importing` call `to_hf` and `from_hf`.
Shapes: h hidden, n query heads, g query groups, d head dim. RoPE needs no permutation: both sides rotate halves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from tinyllama_mcore.config.parameters import logical_parameters
from tinyllama_mcore.config.schema import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the rows of one logical tensor lie in Hugging Face's tensors; `join` undoes `split` bit for bit."""

    split: Callable[[torch.Tensor, ModelConfig], tuple[torch.Tensor, ...]]
    """Logical tensor -> Hugging Face tensors, in the order of the row's names."""
    join: Callable[[tuple[torch.Tensor, ...], ModelConfig], torch.Tensor]
    """Hugging Face tensors -> logical tensor."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One logical name and what Llama, Qwen-2 and Qwen-3 call it. `{layer}` stands for the global layer number."""

    logical: str
    """Template of the logical name."""
    hf: tuple[str, ...]
    """Templates of the Hugging Face names."""
    layout: Layout
    """Order of the rows on either side."""


def split_qkv(qkv: torch.Tensor, model: ModelConfig) -> tuple[torch.Tensor, ...]:
    """[(n+2g)d, h] by query group -> query [nd, h], key [gd, h], value [gd, h]; of biases without h."""
    groups = qkv.unflatten(0, (model.num_query_groups, -1, model.head_dim))  # [g, n/g+2, d, h]
    per_group = groups.shape[1] - 2
    return tuple(part.flatten(0, 2) for part in groups.split((per_group, 1, 1), dim=1))


def join_qkv(parts: tuple[torch.Tensor, ...], model: ModelConfig) -> torch.Tensor:
    """Query [nd, h], key [gd, h], value [gd, h] -> [(n+2g)d, h] by query group; of biases without h."""
    groups = [part.unflatten(0, (model.num_query_groups, -1, model.head_dim)) for part in parts]  # [g, *, d, h]
    return torch.cat(groups, dim=1).flatten(0, 2)


SAME = Layout(split=lambda tensor, _: (tensor,), join=lambda parts, _: parts[0])
QKV_BY_GROUP = Layout(split=split_qkv, join=join_qkv)

OURS, THEIRS = "decoder.layers.{layer}.", "model.layers.{layer}."
TABLE: tuple[Row, ...] = (
    Row(logical="embedding.word_embeddings.weight", hf=("model.embed_tokens.weight",), layout=SAME),
    Row(logical=OURS + "input_layernorm.weight", hf=(THEIRS + "input_layernorm.weight",), layout=SAME),
    Row(
        logical=OURS + "self_attention.linear_qkv.weight",
        hf=tuple(f"{THEIRS}self_attn.{part}_proj.weight" for part in ("q", "k", "v")),
        layout=QKV_BY_GROUP,
    ),
    Row(
        logical=OURS + "self_attention.linear_qkv.bias",
        hf=tuple(f"{THEIRS}self_attn.{part}_proj.bias" for part in ("q", "k", "v")),
        layout=QKV_BY_GROUP,
    ),
    Row(logical=OURS + "self_attention.q_layernorm.weight", hf=(THEIRS + "self_attn.q_norm.weight",), layout=SAME),
    Row(logical=OURS + "self_attention.k_layernorm.weight", hf=(THEIRS + "self_attn.k_norm.weight",), layout=SAME),
    Row(logical=OURS + "self_attention.linear_proj.weight", hf=(THEIRS + "self_attn.o_proj.weight",), layout=SAME),
    Row(logical=OURS + "pre_mlp_layernorm.weight", hf=(THEIRS + "post_attention_layernorm.weight",), layout=SAME),
    Row(logical=OURS + "mlp.linear_fc1.gate.weight", hf=(THEIRS + "mlp.gate_proj.weight",), layout=SAME),
    Row(logical=OURS + "mlp.linear_fc1.up.weight", hf=(THEIRS + "mlp.up_proj.weight",), layout=SAME),
    Row(logical=OURS + "mlp.linear_fc2.weight", hf=(THEIRS + "mlp.down_proj.weight",), layout=SAME),
    Row(logical="decoder.final_layernorm.weight", hf=("model.norm.weight",), layout=SAME),
    Row(logical="output_layer.weight", hf=("lm_head.weight",), layout=SAME),
)
ROWS: Mapping[str, Row] = {row.logical: row for row in TABLE}


def row_of(logical_name: str) -> tuple[Row, tuple[str, ...]]:
    """The row of a logical name, and the Hugging Face names it has. KeyError if the table does not know it."""
    layer = re.search(r"(?<=^decoder\.layers\.)\d+", logical_name)
    row = ROWS[logical_name if layer is None else re.sub(r"(?<=^decoder\.layers\.)\d+", "{layer}", logical_name)]
    return row, tuple(name.format(layer=layer and layer[0]) for name in row.hf)


def to_hf(logical_name: str, tensor: torch.Tensor, model: ModelConfig) -> dict[str, torch.Tensor]:
    """One logical tensor, whole and unpadded -> its Hugging Face tensors by name, contiguous."""
    row, names = row_of(logical_name)
    return dict(zip(names, (part.contiguous() for part in row.layout.split(tensor, model)), strict=True))


def from_hf(logical_name: str, read: Callable[[str], torch.Tensor], model: ModelConfig) -> torch.Tensor:
    """One logical tensor out of the Hugging Face tensors that `read` gives by name."""
    row, names = row_of(logical_name)
    return row.layout.join(tuple(read(name) for name in names), model)


def hf_names(model: ModelConfig) -> tuple[str, ...]:
    """Every tensor of a model of this shape as Hugging Face saves it, in the order of the forward pass."""
    return tuple(name for parameter in logical_parameters(model) for name in row_of(parameter.name)[1])
