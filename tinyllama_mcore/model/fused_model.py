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
from typing import Any, NamedTuple

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
from torch.autograd.function import once_differentiable

from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.kernels.plain import Addends
from tinyllama_mcore.model import attention, context, documents, fused
from tinyllama_mcore.model.fused import Plan, TensorParallel
from tinyllama_mcore.model.local import DecoderLayer
from tinyllama_mcore.model.norm import RMSNorm
from tinyllama_mcore.model.products import added_gradient, differentiated, products_of, weight_gradient
from tinyllama_mcore.model.rope import Rotary
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


class Held(NamedTuple):
    """A weight that autograd is not to see: it looks at arguments, not into them. See `products.differentiated`."""

    tensor: torch.Tensor


class _Embedding(torch.autograd.Function):
    """Rows of the embedding for tokens [t]: [t, h], or [t/tp, h] under sequence parallelism."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        ends: Ends,
        weight: Held,
        tokens: torch.Tensor,
        _: torch.Tensor,
    ) -> torch.Tensor:
        columns, parallel = ends.columns, ends.parallel
        whole = columns.held == columns.real and parallel.group.size() == 1
        own = None if whole else (tokens >= columns.first) & (tokens < columns.first + columns.held)
        place = tokens
        if own is not None:  # a token of another rank looks at any row, a different one each, and gets zeros
            spread = torch.arange(len(tokens), device=tokens.device) % columns.held
            place = torch.where(own, tokens - columns.first, spread)
        rows = torch.nn.functional.embedding(place, weight.tensor)
        if own is not None:
            rows = rows * own[:, None]
        ctx.save_for_backward(place, own)
        ctx.ends, ctx.weight = ends, weight.tensor
        return parallel.reduce(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: torch.Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        (place, own), ends, weight = ctx.saved_tensors, ctx.ends, ctx.weight
        grad_rows = ends.parallel.gather(grad_rows)
        if own is not None:
            grad_rows = grad_rows * own[:, None]
        buffer = getattr(weight, "main_grad", None)
        if buffer is None:
            grad_weight = torch.ops.aten.embedding_dense_backward(grad_rows, place, weight.shape[0], -1, False)
            return None, None, None, grad_weight
        ends.kernels.add_rows(buffer, place, grad_rows)
        return None, None, None, None


class _Norm(torch.autograd.Function):
    """The RMSNorm of the sum of x and `count` deltas, all [t, h]."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        ends: Ends,
        weight: Held,
        count: int,
        x: torch.Tensor,
        *deltas_and_differentiated: torch.Tensor,
    ) -> torch.Tensor:
        deltas = deltas_and_differentiated[:count]
        total, normed, inv_rms = ends.kernels.add_rms_norm(x, deltas, weight.tensor, ends.eps)
        ctx.ends, ctx.weight, ctx.deltas = ends, weight.tensor, count
        ctx.save_for_backward(total, inv_rms)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_normed: torch.Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        (total, inv_rms), weight = ctx.saved_tensors, ctx.weight
        grad_x, _, grad_weight = ctx.ends.kernels.rms_norm_backward((grad_normed,), total, inv_rms, weight, None)
        grad_weight = added_gradient(weight, ctx.ends.parallel.sum_of_tokens(grad_weight))
        own = [grad_weight] if len(ctx.needs_input_grad) > 4 + ctx.deltas else []
        return None, None, None, grad_x, *[grad_x] * ctx.deltas, *own


class _Loss(torch.autograd.Function):
    """The head and the cross entropy of normed states [t, h]: loss of each token, fp32 [t]."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        ends: Ends,
        weight: Held,
        labels: torch.Tensor,
        normed: torch.Tensor,
        *_: torch.Tensor,
    ) -> torch.Tensor:
        columns, parallel = ends.columns, ends.parallel
        logits = parallel.gather(normed) @ weight.tensor.t()
        log_sum, target = ends.kernels.cross_entropy(logits, labels, columns.first, columns.real)
        if parallel.group.size() > 1:
            log_sums, targets = parallel.of_all_ranks(torch.stack([log_sum, target])).unbind(dim=1)
            most = log_sums.amax(dim=0)
            log_sum, target = (log_sums - most).exp().sum(dim=0).log() + most, targets.sum(dim=0)
        ctx.ends, ctx.weight = ends, weight.tensor
        ctx.save_for_backward(logits, log_sum, labels, normed)
        return log_sum - target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        logits, log_sum, labels, normed = ctx.saved_tensors
        ends, weight = ctx.ends, ctx.weight
        grad_logits = ends.kernels.cross_entropy_backward(
            logits, labels, log_sum, grad_loss.contiguous(), ends.columns.first, ends.columns.real
        )
        grad_normed = ends.parallel.reduce(grad_logits @ weight)
        grad_weight = weight_gradient(weight, grad_logits, ends.parallel.gather(normed))
        return None, None, None, grad_normed, *([grad_weight] if len(ctx.needs_input_grad) > 4 else [])


class FusedDecoderLayer(DecoderLayer):
    """The same parameters, in one autograd function."""

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
        anchor = differentiated(self.weight) or (torch.empty(0, device=tokens.device, requires_grad=True),)
        return _Embedding.apply(ends, Held(self.weight), tokens, *anchor)


class FusedNorm(RMSNorm):
    """The last norm, which adds what the last layer left to add."""

    def forward(self, x: torch.Tensor, deltas: Addends, ends: Ends) -> torch.Tensor:  # type: ignore[override]
        """Several [t, h] -> one; t/tp under sequence parallelism."""
        return _Norm.apply(ends, Held(self.weight), len(deltas), x, *deltas, *differentiated(self.weight))


class FusedHead(ColumnParallelLinear):
    """Megatron's head, with the loss."""

    def forward(self, normed: torch.Tensor, labels: torch.Tensor | None, ends: Ends) -> torch.Tensor:
        """Normed states [t, h] and labels [t] -> loss of each token, fp32 [t]; without labels logits [t, v/tp]."""
        if labels is None:
            return ends.parallel.gather(normed) @ self.weight.t()
        return _Loss.apply(ends, Held(self.weight), labels, normed, *differentiated(self.weight))


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
        """Make embedding, last norm and head of a chunk ours: modules still, as engines hang their hooks on modules."""
        if chunk.pre_process:
            chunk.embedding.word_embeddings.__class__ = FusedEmbedding
        if chunk.post_process:
            chunk.decoder.final_layernorm.__class__ = FusedNorm
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
