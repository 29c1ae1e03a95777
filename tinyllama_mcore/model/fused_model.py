"""The model of fused layers: embedding, layers, loss. Parameters are those of Megatron's GPTModel, the passes our own.

Neighbours: `fused` has the layer; `gpt` builds the model and picks between this and Megatron's own forward pass.
Shapes: b micro-batch, s sequence, t = b s tokens, h hidden, v padded vocabulary; a rank holds v/tp rows and s/cp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer

from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.kernels.plain import Addends
from tinyllama_mcore.model import attention, context, documents, fused
from tinyllama_mcore.model.fused import Plan, TensorParallel
from tinyllama_mcore.model.norm import Norm
from tinyllama_mcore.model.products import products_of
from tinyllama_mcore.model.rope import Rotary
from tinyllama_mcore.model.weight_gradients import (
    Gradients,
    WeightFunction,
    added_gradient,
    differentiated,
    weight_gradient,
)
from tinyllama_mcore.parallel.exchange import Exchange, exchanges
from tinyllama_mcore.parallel.mesh import Mesh


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of the logits, and rows of the embedding, this rank holds."""

    first: int
    """Number of its first one among those of all ranks."""
    held: int
    """How many it holds."""
    real: int
    """How many of them stand for a token; the rest pad."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What embedding, last norm and head need besides their weights."""

    kernels: ModuleType
    columns: Columns
    parallel: TensorParallel
    eps: float
    """Epsilon of the norm."""


class _Embedding(WeightFunction):
    """Rows of the embedding for tokens [t]: [t, h], or [t/tp, h] under sequence parallelism."""

    @staticmethod
    def compute(ctx: Any, tokens: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        (weight,), columns, parallel = ctx.weights, ctx.setup.columns, ctx.setup.parallel
        whole = columns.held == columns.real and parallel.group.size() == 1
        own = None if whole else (tokens >= columns.first) & (tokens < columns.first + columns.held)
        place = tokens
        if own is not None:  # a token of another rank looks at any row, a different one each, and gets zeros
            spread = torch.arange(len(tokens), device=tokens.device) % columns.held
            place = torch.where(own, tokens - columns.first, spread)
        rows = torch.nn.functional.embedding(place, weight)
        if own is not None:
            rows = rows * own[:, None]
        ctx.save_for_backward(place, own)
        return parallel.reduce(rows)

    @staticmethod
    def gradients(ctx: Any, grad_rows: torch.Tensor) -> Gradients:  # noqa: ANN401
        (place, own), (weight,) = ctx.saved_tensors, ctx.weights
        grad_rows = ctx.setup.parallel.gather(grad_rows)
        if own is not None:
            grad_rows = grad_rows * own[:, None]
        grad_weight = None
        if hasattr(weight, "main_grad"):
            ctx.setup.kernels.add_rows(weight.main_grad, place, grad_rows)
        else:
            grad_weight = torch.ops.aten.embedding_dense_backward(grad_rows, place, weight.shape[0], -1, False)
        return (None,) * ctx.inputs, (grad_weight,)


class _Norm(WeightFunction):
    """The RMSNorm of the sum of x and its deltas, all [t, h]."""

    @staticmethod
    def compute(ctx: Any, x: torch.Tensor, *deltas: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        (weight,), ends = ctx.weights, ctx.setup
        total, normed, inv_rms = ends.kernels.add_rms_norm(x, deltas, weight, ends.eps)
        ctx.save_for_backward(total, inv_rms)
        return normed

    @staticmethod
    def gradients(ctx: Any, grad_normed: torch.Tensor) -> Gradients:  # noqa: ANN401
        (total, inv_rms), (weight,), ends = ctx.saved_tensors, ctx.weights, ctx.setup
        grad_x, _, grad_weight = ends.kernels.rms_norm_backward((grad_normed,), total, inv_rms, weight, None)
        return (grad_x,) * ctx.inputs, (added_gradient(weight, ends.parallel.sum_of_tokens(grad_weight)),)


class _Loss(WeightFunction):
    """The head and the cross entropy of normed states [t, h] and labels [t]: loss of each token, fp32 [t]."""

    @staticmethod
    def compute(ctx: Any, normed: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        (weight,), ends = ctx.weights, ctx.setup
        columns, parallel = ends.columns, ends.parallel
        logits = parallel.gather(normed) @ weight.t()
        log_sum, target = ends.kernels.cross_entropy(logits, labels, columns.first, columns.real)
        if parallel.group.size() > 1:
            log_sums, targets = parallel.of_all_ranks(torch.stack([log_sum, target])).unbind(dim=1)
            most = log_sums.amax(dim=0)
            log_sum, target = (log_sums - most).exp().sum(dim=0).log() + most, targets.sum(dim=0)
        ctx.save_for_backward(logits, log_sum, labels, normed)
        return log_sum - target

    @staticmethod
    def gradients(ctx: Any, grad_loss: torch.Tensor) -> Gradients:  # noqa: ANN401
        logits, log_sum, labels, normed = ctx.saved_tensors
        (weight,), ends = ctx.weights, ctx.setup
        grad_logits = ends.kernels.cross_entropy_backward(
            logits, labels, log_sum, grad_loss.contiguous(), ends.columns.first, ends.columns.real
        )
        grad_normed = ends.parallel.reduce(grad_logits @ weight)
        grad_weight = weight_gradient(weight, grad_logits, ends.parallel.gather(normed))
        return (grad_normed, None), (grad_weight,)


def block_spec(run: RunConfig, layers: int) -> TransformerBlockSubmodules:
    """So many decoder layers and the last norm, which hold the parameters of Megatron's."""
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.module = FusedDecoderLayer
    heads = {"q_layernorm": Norm, "k_layernorm": Norm} if run.model.qk_layernorm else {}
    spec.submodules.self_attention.submodules = dataclasses.replace(
        spec.submodules.self_attention.submodules, core_attention=ModuleSpec(module=IdentityOp), **heads
    )
    spec.submodules = dataclasses.replace(spec.submodules, input_layernorm=Norm, pre_mlp_layernorm=Norm)
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=FusedNorm)


class FusedDecoderLayer(TransformerLayer):
    """The parameters of Megatron's layer, in one autograd function."""

    float8 = False
    """Whether its products by weights are in float8."""

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  torch's own
        """A module's call as torch has it, with the hooks of engines."""
        return torch.nn.Module.__call__(self, hidden_states, *args, **kwargs)

    def forward(self, x: torch.Tensor, deltas: Addends, plan: Plan) -> tuple[torch.Tensor, ...]:
        """See `fused.layer`."""
        attention, mlp = self.self_attention, self.mlp
        weights = fused.Weights(
            norm1=self.input_layernorm.weight,
            qkv=attention.linear_qkv.weight,
            proj=attention.linear_proj.weight,
            norm2=self.pre_mlp_layernorm.weight,
            fc1=mlp.linear_fc1.weight,
            fc2=mlp.linear_fc2.weight,
            qkv_bias=attention.linear_qkv.bias,
            query_norm=getattr(attention.q_layernorm, "weight", None),
            key_norm=getattr(attention.k_layernorm, "weight", None),
        )
        if self.float8:
            plan = dataclasses.replace(plan, products=dataclasses.replace(plan.products, float8=True))
        return fused.layer(plan, x, deltas, weights)


class FusedEmbedding(VocabParallelEmbedding):
    """Megatron's embedding, which hands its rows on in the order of fused layers."""

    def forward(self, tokens: torch.Tensor, ends: Ends) -> torch.Tensor:
        """Tokens [t] -> [t, h], or [t/tp, h] under sequence parallelism."""
        sees_weight = differentiated(self.weight)  # else there is nothing that autograd would go back to
        anchor = () if sees_weight else (torch.empty(0, device=tokens.device, requires_grad=True),)
        return _Embedding.of(ends, (self.weight,), tokens, *anchor)


class FusedNorm(Norm):
    """The last norm, which adds what the last layer left to add."""

    def forward(self, x: torch.Tensor, deltas: Addends, ends: Ends) -> torch.Tensor:
        """Several [t, h] -> one; t/tp under sequence parallelism."""
        return _Norm.of(ends, (self.weight,), x, *deltas)


class FusedHead(ColumnParallelLinear):
    """Megatron's head, with the loss."""

    def forward(self, normed: torch.Tensor, labels: torch.Tensor | None, ends: Ends) -> torch.Tensor:
        """Normed states [t, h] and labels [t] -> loss of each token, fp32 [t]; without labels logits [t, v/tp]."""
        if labels is None:
            return ends.parallel.gather(normed) @ self.weight.t()
        return _Loss.of(ends, (self.weight,), normed, labels)


class FusedPasses:
    """The forward pass of a pipeline chunk, in the place of GPTModel's."""

    def __init__(self, run: RunConfig, mesh: Mesh, true_vocab_size: int) -> None:
        """`true_vocab_size` is how many rows of the vocabulary stand for a token."""
        self._mesh, self._groups = mesh, run.model.num_query_groups // mesh.tensor.size
        self._recomputes = run.layout.recompute_granularity == "full"
        self._rotary = Rotary(run.model, torch.float32, mesh.device)
        self._kernel = attention.kernel(run.attention_backend)
        self._products = products_of(run, mesh.device)
        held = run.padded_vocab_size // mesh.tensor.size
        first = held * mesh.tensor.rank
        self._ends = Ends(
            kernels=self._products.kernels,
            columns=Columns(first=first, held=held, real=max(0, min(held, true_vocab_size - first))),
            parallel=TensorParallel(
                group=mesh.tensor.group,
                sequence_parallel=run.layout.sequence_parallel,
                exchange=Exchange(mesh) if exchanges(run, mesh.device) else None,
            ),
            eps=run.model.norm_epsilon,
        )

    @staticmethod
    def adopt(chunk: GPTModel) -> None:
        """Make embedding and head of a chunk ours: modules still, as engines hang their hooks on modules."""
        if chunk.pre_process:
            chunk.embedding.word_embeddings.__class__ = FusedEmbedding
        if chunk.post_process:
            chunk.output_layer.__class__ = FusedHead

    def watch(self, waiting: Callable[[], AbstractContextManager[None]]) -> None:
        """Put `waiting` around each wait for other ranks on a layer's way forward, where there are any."""
        if self._mesh.tensor.size > 1 or self._mesh.context.size > 1:
            parallel = dataclasses.replace(self._ends.parallel, waiting=waiting)
            self._ends = dataclasses.replace(self._ends, parallel=parallel)

    def __call__(
        self,
        chunk: GPTModel,
        tokens: torch.Tensor,
        labels: torch.Tensor | None,
        packed: PackedSeqParams | None,
    ) -> torch.Tensor:
        """Tokens [b, s/cp] through one chunk.

        Returns:
            On the last chunk the loss of each token, fp32 [b, s/cp], or without labels the logits [b, s/cp, v/tp];
            else the residual stream [s/cp, b, h] as Megatron's schedules send it on (s/cp/tp under sequence
            parallelism), whose elements are in the order of b and s, not of s and b.
        """
        plan, ends = self._plan(tokens, packed), self._ends
        if ends.parallel.exchange is not None:
            ends.parallel.exchange.begin_pass()
        deltas: Addends = ()
        if chunk.pre_process:
            x = chunk.embedding.word_embeddings(tokens.flatten(), ends)
        else:
            x = chunk.decoder.input_tensor.flatten(0, 1)
        for layer in chunk.decoder.layers:
            x, *deltas = layer(x, tuple(deltas), plan)
        if not chunk.post_process:
            shape = (-1, tokens.shape[0], x.shape[1])
            return sum((delta.view(shape) for delta in deltas), start=x.view(shape))  # Megatron frees no view
        normed = chunk.decoder.final_layernorm(x, tuple(deltas), ends)
        if labels is None:
            return chunk.output_layer(normed, None, ends).view(*tokens.shape, -1)
        return chunk.output_layer(normed, labels.flatten(), ends).view(tokens.shape)

    def _plan(self, tokens: torch.Tensor, packed: PackedSeqParams | None) -> Plan:
        ranks = self._mesh.context
        if isinstance(packed, documents.Documents):
            cos, sin = self._rotary.angles_of(packed.positions)
        else:
            cos, sin = self._rotary.angles(tokens.shape[1] * ranks.size, rank=ranks.rank, size=ranks.size)

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            if isinstance(packed, documents.Documents):
                query, key, value = (x.squeeze(0) for x in (query, key, value))
                return documents.attend(self._kernel, query, key, value, packed).unsqueeze(0)
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))  # [s/cp, b, n/tp or g/tp, d]
            if ranks.size > 1:
                waiting = self._ends.parallel.waiting
                return context.attend(self._kernel, query, key, value, ranks.group, waiting).transpose(0, 1)
            return self._kernel(query, key, value).transpose(0, 1)

        return Plan(
            products=self._products,
            parallel=self._ends.parallel,
            batch=tokens.shape[0],
            groups=self._groups,
            eps=self._ends.eps,
            cos=cos,
            sin=sin,
            attend=attend,
            recomputes=self._recomputes,
        )
