"""The model: ModelConfig in Megatron's words, and a GPTModel made from our layer spec.

`build` gives a model whose weights are not set; an engine fills them (from `initialize` or from a checkpoint).
Shapes: s sequence, b micro-batch, h hidden, v padded vocabulary; a rank holds v/tp columns of the logits.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.model.attention import CausalAttention
from tinyllama_mcore.model.norm import RMSNorm
from tinyllama_mcore.model.parameters import known_vocab_size, logical_parameters, part_names
from tinyllama_mcore.parallel.mesh import Mesh

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def transformer_config(run: RunConfig) -> TransformerConfig:
    """The architecture and layout in Megatron's words. No dropout, no bias, fp32 weights unless the run is bf16."""
    model, layout = run.model, run.layout
    dtype = DTYPES[run.sharding.precision]
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        perform_initialization=False,
        use_cpu_initialization=not torch.cuda.is_available(),
        # the fused paths below need Apex or Transformer Engine, or compile at the first call
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        **_RECOMPUTE[layout.recompute_granularity],
    )


def layer_spec(attention_backend: str) -> ModuleSpec:
    """Megatron's local decoder layer with our attention and norm in their places."""
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    attention = spec.submodules.self_attention
    core = ModuleSpec(module=CausalAttention, params={"backend": attention_backend})
    attention.submodules = dataclasses.replace(attention.submodules, core_attention=core)
    spec.submodules = dataclasses.replace(spec.submodules, input_layernorm=RMSNorm, pre_mlp_layernorm=RMSNorm)
    return spec


class TinyLlama(GPTModel):
    """GPTModel that knows how many of its vocabulary's rows are padding."""

    true_vocab_size: int
    """Rows of the vocabulary that stand for a token; the rest pad it to a multiple of the tensor-parallel size."""

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Labels [b, s], logits [s, b, v/tp] -> loss of each token [b, s] in fp32. Padding rows get no probability."""
        rank, columns = self.pg_collection.tp.rank(), logits.shape[-1]
        real = max(0, min(columns, self.true_vocab_size - rank * columns))
        if real < columns:
            padding = torch.arange(columns, device=logits.device) >= real
            logits = logits.masked_fill(padding, float("-inf"))
        return super().compute_language_model_loss(labels, logits)

    def whole_logits(self, forward: Callable[..., torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [b, s] -> logits [b, s, vocab_size], whole on every tensor-parallel rank.

        `forward` is this model or an engine's wrapper around it.
        """
        local = forward(tokens, positions(tokens), None)  # [b, s, v/tp]
        whole = gather_from_tensor_model_parallel_region(local)
        return whole[..., : self.true_vocab_size]


def positions(tokens: torch.Tensor) -> torch.Tensor:
    """Position of each token [b, s]: 0 to s-1 in every sample, documents or not (paper: no reset)."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)


def build(run: RunConfig, mesh: Mesh) -> TinyLlama:
    """The model of this rank, weights not set. Megatron's padding and cutting follow `mesh`."""
    _silence_deprecation_notice()
    config = transformer_config(run)
    spec = layer_spec(run.attention_backend)
    model = TinyLlama(
        config=config,
        transformer_layer_spec=TransformerBlockSubmodules(
            layer_specs=[spec] * run.model.num_layers, layer_norm=RMSNorm
        ),
        vocab_size=run.padded_vocab_size,
        max_sequence_length=run.model.max_position_embeddings,
        position_embedding_type="rope",
        rotary_base=run.model.rotary_base,
        share_embeddings_and_output_weights=False,
        pg_collection=mesh.groups,
    )
    model.true_vocab_size = known_vocab_size(run.model)
    _mark_tensor_parallel(model, run)
    if run.compile:
        for layer in model.decoder.layers:
            layer.compile()
    return model


def _mark_tensor_parallel(model: TinyLlama, run: RunConfig) -> None:
    """Say on each parameter whether tensor-parallel ranks hold parts of it: gradient norms count by this mark.

    Megatron sets it only while it draws initial weights (tensor_parallel/layers.py, 0.16.1), which we do ourselves.
    """
    cut = {p.name: p.tp_dim is not None for p in logical_parameters(run.model)}
    for name, parameter in model.named_parameters():
        parameter.tensor_model_parallel = cut[part_names(name)[0]]


def _silence_deprecation_notice() -> None:
    """Megatron-core 0.19 logs that GPTModel is in maintenance mode; users can do nothing about it. That line only."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("GPTModel IS DEPRECATED")

    logging.getLogger("megatron.core.models.gpt.gpt_model").addFilter(wanted)
