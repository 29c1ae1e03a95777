"""Megatron-core's GPTModel from its local layers, as a user without Transformer Engine and Apex gets it, compiled.

Two things are not Megatron's own. Its local attention makes the whole matrix of scores, so torch's fused kernel is in
its place; and its row-parallel layers name their group (`model.local.RowLinear`), or no layer would be one graph.
Shapes: s sequence, b micro-batch, n query heads, g query groups, d head dim.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from tinyllama_mcore.benchmarking.workload import Workload
from tinyllama_mcore.model.attention import kernel
from tinyllama_mcore.model.local import RowLinear
from tinyllama_mcore.parallel.alone import job_of_one

GRAPHS = 64
"""Most that torch.compile may make of a layer's code: it may need one a layer."""


class TorchAttention(MegatronModule):
    """Causal attention by torch's fused kernel behind the signature of Megatron's `core_attention`."""

    def __init__(self, config: TransformerConfig, **_: object) -> None:
        """Megatron's other keywords describe other attention."""
        super().__init__(config=config)
        self._attend = kernel("auto")

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object) -> object:
        """Query [s, b, n, d], key and value [s, b, g, d] -> context [s, b, n * d]."""
        return self._attend(query, key, value).flatten(2)


def build(workload: Workload, leaving: ExitStack) -> torch.nn.Module:
    """The model on the workload's device, in a job of one process until `leaving` is closed."""
    mesh = leaving.enter_context(job_of_one())
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    attention = spec.submodules.self_attention
    attention.submodules = dataclasses.replace(attention.submodules, core_attention=ModuleSpec(module=TorchAttention))
    model = GPTModel(
        config=transformer_config(workload),
        transformer_layer_spec=TransformerBlockSubmodules(
            layer_specs=[spec] * workload.model.num_layers, layer_norm=WrappedTorchNorm
        ),
        vocab_size=workload.vocab_size,
        max_sequence_length=workload.seq_length,
        position_embedding_type="rope",
        rotary_base=int(workload.model.rotary_base),
        share_embeddings_and_output_weights=False,
        pg_collection=mesh.groups,
    ).to(mesh.device)
    if workload.on_gpu:
        model.to(torch.bfloat16)
        torch._dynamo.config.recompile_limit = GRAPHS
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.02)
    for layer in model.decoder.layers:
        for linear in (layer.self_attention.linear_proj, layer.mlp.linear_fc2):
            linear.__class__ = RowLinear
        if workload.on_gpu:
            layer.forward = torch.compile(layer.forward)
    return model


def transformer_config(workload: Workload) -> TransformerConfig:
    """The architecture in Megatron's words: nothing that needs Apex or Transformer Engine."""
    model, dtype = workload.model, torch.bfloat16 if workload.on_gpu else torch.float32
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=workload.on_gpu,
        perform_initialization=False,
        use_cpu_initialization=not workload.on_gpu,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,  # the compiled layer fuses what these two would
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        cross_entropy_loss_fusion=workload.on_gpu,
        cross_entropy_fusion_impl="native",
    )


def loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [b, s + 1] -> their mean loss."""
    inputs = tokens[:, :-1].contiguous()
    positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    return model(inputs, positions, None, labels=tokens[:, 1:].contiguous()).mean()
