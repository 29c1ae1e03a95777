"""Megatron's GPTModel from our layer spec, one a pipeline chunk. By default it only holds the parameters.

What computes is `fused_model`; with `--transformer-impl local` Megatron's own forward passes run.
`build` gives a model whose weights are not set; an engine fills them (from `initialize` or from a checkpoint).
Shapes: s sequence, b micro-batch, h hidden, v padded vocabulary; a rank holds v/tp columns of the logits.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig

from tinyllama_mcore.config.parameters import known_vocab_size, logical_parameters
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.model import fused_model, local
from tinyllama_mcore.model.fused_model import FusedPasses
from tinyllama_mcore.model.local import LocalModel
from tinyllama_mcore.model.parameters import part_names
from tinyllama_mcore.model.tied import Borrower, Lender, Tie
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.parallel.own_time import OwnTime

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def transformer_config(run: RunConfig) -> TransformerConfig:
    """The architecture and layout in Megatron's words. No dropout; bf16 weights in bf16, but for FSDP."""
    model, layout = run.model, run.layout
    dtype = DTYPES[run.sharding.precision]
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.head_dim,
        qk_layernorm=model.qk_layernorm,
        add_qkv_bias=model.add_qkv_bias,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        use_te_activation_func=True,  # not Megatron's own way to gate: what `local.DecoderLayer` puts there
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        context_parallel_size=layout.context_parallel_size,
        **_pipeline(run),
        # under FSDP the fp32 master weights are the module's own, and are cast where they are gathered
        params_dtype=dtype if run.sharding.fsdp is None else torch.float32,
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


def _pipeline(run: RunConfig) -> dict[str, Any]:
    """How the layers are cut, as Megatron's PipelineParallelLayerLayout has it: what each chunk holds, in order."""
    layout = run.layout
    if layout.pipeline_model_parallel_size == 1:
        return {}
    chunks = [["decoder"] * layers for layers in layout.layers_by_chunk(run.model.num_layers)]
    chunks[0].insert(0, "embedding")
    chunks[-1].append("loss")
    virtual = layout.virtual_pipeline_model_parallel_size
    return {
        "pipeline_model_parallel_size": layout.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": virtual if virtual > 1 else None,
        "pipeline_model_parallel_layout": chunks,
        "batch_p2p_sync": torch.cuda.is_available(),
        # Interleaved, two ranks have two tensors for each other at once. Batched, with 2 pipeline ranks, a gradient is
        # taken for an activation; not batched, Megatron frees an output that is still being sent. Either way the run
        # trains on, wrongly (megatron-core 0.16.1 over gloo; tests/distributed/test_curves.py).
        "deallocate_pipeline_outputs": virtual == 1,
        "overlap_p2p_comm": virtual > 1,
        "batch_p2p_comm": virtual == 1,
    }


class TinyLlama(LocalModel):
    """GPTModel of one pipeline chunk, that knows its first layer and how many of its vocabulary's rows are padding."""

    first_layer: int
    """Global number, from 0, of the chunk's first decoder layer."""
    passes: FusedPasses | None = None
    """Takes the place of Megatron's forward pass where layers are fused."""

    def forward(
        self,
        tokens: torch.Tensor,
        *,
        labels: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """Tokens and labels [b, s] to what `FusedPasses` returns, or GPTModel with `local` layers."""
        if self.passes is not None:
            return self.passes(self, tokens, labels, packed_seq_params)
        return super().forward(tokens, labels=labels, packed_seq_params=packed_seq_params)

    def whole_logits(self, local: torch.Tensor) -> torch.Tensor:
        """Logits [b, s, v/tp] of this rank -> [b, s, vocab_size], whole on every tensor-parallel rank."""
        return gather_from_tensor_model_parallel_region(local)[..., : self.true_vocab_size]


class ModelChunks(torch.nn.Module):
    """All that this rank holds of the model: one chunk, or several under the interleaved pipeline schedule."""

    chunks: Sequence[TinyLlama]
    """In the order of the model."""
    tie: Tie | None = None
    """This rank's end where embedding and head are one matrix on two pipeline ranks."""

    def __init__(self, chunks: list[TinyLlama]) -> None:
        """`chunks` in the order of the model."""
        super().__init__()
        self.chunks = torch.nn.ModuleList(chunks)  # type: ignore[assignment]  # a sequence that torch can see

    def forward(self, chunk: int, tokens: torch.Tensor, **inputs: Any) -> torch.Tensor:  # noqa: ANN401  a chunk's own
        """Tokens [b, s] through one chunk, as `TinyLlama.forward` takes them; labels give a loss on the last chunk."""
        return self.chunks[chunk](tokens, **inputs)

    def named_tensors(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(name with the global number of its layer, parameter) for every parameter, in the order of the model."""
        for chunk in self.chunks:
            for name, parameter in chunk.named_parameters():
                yield _with_global_layer(name, chunk.first_layer), parameter

    def layers(self) -> Iterator[torch.nn.Module]:
        """Every decoder layer, in the order of the model."""
        for chunk in self.chunks:
            yield from chunk.decoder.layers

    @contextmanager
    def iteration(self, passes: int) -> Iterator[None]:
        """Around so many micro-batches, whose forward and backward passes have the same weights."""
        if self.tie is not None:
            self.tie.begin(passes)
        yield
        if self.tie is not None:
            self.tie.finish()

    def watch(self, own_time: OwnTime) -> None:
        """Measure this rank's own time in each forward pass of a decoder layer that trains.

        After the engine has hung its hooks on layers: within those, so that a gather of the weights is outside.
        """
        for chunk in self.chunks:
            if chunk.passes is not None:
                chunk.passes.watch(own_time.waiting)
        for layer in self.layers():
            layer.register_forward_pre_hook(lambda layer, _: own_time.begin() if layer.training else None)
            layer.register_forward_hook(lambda layer, *_: own_time.end() if layer.training else None, prepend=True)

    @contextmanager
    def without_float8(self) -> Iterator[None]:
        """All products in the precision of the weights, for a while."""
        narrow: list[Any] = [layer for layer in self.layers() if getattr(layer, "float8", False)]
        for layer in narrow:
            layer.float8 = False
        try:
            yield
        finally:
            for layer in narrow:
                layer.float8 = True

    def float8_weights(self) -> Iterator[torch.nn.Parameter]:
        """The matrices whose products are in float8."""
        for layer in self.layers():
            if getattr(layer, "float8", False):
                yield from (parameter for parameter in layer.parameters() if parameter.dim() > 1)


def _with_global_layer(name: str, first_layer: int) -> str:
    """A chunk's parameter name, whose layers count from 0, as the whole model counts them."""
    return re.sub(r"^decoder\.layers\.(\d+)\.", lambda m: f"decoder.layers.{int(m[1]) + first_layer}.", name)


def build(run: RunConfig, mesh: Mesh) -> ModelChunks:
    """The model of this rank, weights not set. Megatron's padding and cutting follow `mesh`."""
    _silence_deprecation_notice()
    config = transformer_config(run)
    by_chunk = run.layout.layers_by_chunk(run.model.num_layers)
    own = range(mesh.pipeline.rank, len(by_chunk), mesh.pipeline.size)
    model = ModelChunks([_chunk(run, mesh, config, number) for number in own])
    if not run.model.untie_embeddings_and_output_weights:
        _tie(model, run, mesh)
    _mark_tensor_parallel(model, run)
    if run.compile:
        for layer in model.layers():
            local.compile_forward(layer)
    return model


def _tie(model: ModelChunks, run: RunConfig, mesh: Mesh) -> None:
    """Make embedding and head one matrix: one parameter on one rank, a loan between two (`tied`)."""
    first, last, group = model.chunks[0], model.chunks[-1], mesh.groups.embd
    if mesh.pipeline.size == 1:
        last.output_layer.weight = first.embedding.word_embeddings.weight
    elif first.pre_process:
        model.tie = Lender(first.embedding.word_embeddings, group)
    elif last.post_process:
        model.tie = Borrower(last.output_layer, group, DTYPES[run.sharding.precision], mesh.device)


def _chunk(run: RunConfig, mesh: Mesh, config: TransformerConfig, number: int) -> TinyLlama:
    """Model chunk `number` of the whole pipeline, counted from 0 in the order of the model."""
    by_chunk = run.layout.layers_by_chunk(run.model.num_layers)
    fused, layers = run.transformer_impl == "fused", by_chunk[number]
    dtype = DTYPES[run.sharding.precision]
    chunk = TinyLlama(
        config=config,
        transformer_layer_spec=(
            fused_model.block_spec(run, layers) if fused else local.block_spec(run, layers, dtype, mesh.device)
        ),
        vocab_size=run.padded_vocab_size,
        max_sequence_length=run.model.max_position_embeddings,
        pre_process=number == 0,
        post_process=number == len(by_chunk) - 1,
        position_embedding_type="none",  # fused layers and the local core attention turn queries and keys
        share_embeddings_and_output_weights=False,  # `_tie` does
        pg_collection=mesh.groups,
        vp_stage=number // mesh.pipeline.size if run.layout.virtual_pipeline_model_parallel_size > 1 else None,
    )
    chunk.true_vocab_size = known_vocab_size(run.model)
    chunk.first_layer = sum(by_chunk[:number])
    if fused:
        chunk.passes = FusedPasses(run, mesh, chunk.true_vocab_size)
        chunk.passes.adopt(chunk)
        narrow = run.float8.layers(run.model.num_layers)
        for layer_number, layer in enumerate(chunk.decoder.layers, start=chunk.first_layer):
            layer.float8 = layer_number in narrow
    return chunk


def _mark_tensor_parallel(model: ModelChunks, run: RunConfig) -> None:
    """Say on each parameter whether tensor-parallel ranks hold parts of it: gradient norms count by this mark.

    Megatron sets it only while it draws initial weights (tensor_parallel/layers.py, 0.16.1), which we do ourselves.
    """
    cut = {p.name: p.tp_dim is not None for p in logical_parameters(run.model)}
    for name, parameter in model.named_tensors():
        parameter.tensor_model_parallel = cut[part_names(name)[0]]  # type: ignore[attr-defined]


def _silence_deprecation_notice() -> None:
    """Megatron-core 0.19 logs that GPTModel is in maintenance mode; users can do nothing about it. That line only."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("GPTModel IS DEPRECATED")

    logging.getLogger("megatron.core.models.gpt.gpt_model").addFilter(wanted)
