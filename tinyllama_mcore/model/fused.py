"""A decoder layer as one autograd function: forward and backward written out, matrix products and one-pass kernels.

It computes what Megatron's layer computes, from the same parameters. It is faster for four reasons: each piece between
two matrix products is one kernel (`kernels`); weight gradients are added to an fp32 buffer by the matrix product
itself, where the engine keeps one (`main_grad`); of norms and SwiGLU only the inputs are kept for the backward pass
(their outputs are made again on the way back); and Python runs once a layer, not once an operation.
Neighbours: `products` multiplies; `fused_model` puts layers, embedding and loss together; `attention` has the kernel of
the core attention.
Names: `grad_x` is the gradient of x; `deltas` what a block adds to the residual stream, as one or two addends, and
`total` the stream after that addition; `gate_up` SwiGLU's gate and up in one matrix.
Shapes: b micro-batch, s sequence, t = b s tokens in that order, h hidden, n query heads, g query groups, d head dim, f
feed-forward. A rank holds n/tp, g/tp, f/tp, s/cp, and t/tp between blocks under sequence parallelism.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch.distributed import ProcessGroup

from tinyllama_mcore.kernels.float8 import Float8Rows, Operand
from tinyllama_mcore.kernels.plain import Addends
from tinyllama_mcore.model.products import Products
from tinyllama_mcore.model.weight_gradients import Gradients, WeightFunction, added_gradient, weight_gradient
from tinyllama_mcore.parallel.exchange import Exchange

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Query [b, s, n, d], key and value [b, s, g, d] -> context [b, s, n, d]; differentiable."""
X = TypeVar("X", torch.Tensor, Float8Rows, Operand)
_PARTS = 4
"""Of a product whose result is exchanged: the last one's copy is all that is waited for."""


@dataclass(frozen=True, kw_only=True)
class TensorParallel:
    """What tensor-parallel ranks send each other around a block (Megatron-LM, arXiv 1909.08053; 2205.05198)."""

    group: ProcessGroup
    sequence_parallel: bool
    exchange: Exchange | None
    """Takes the place of sums by NCCL, where there is one."""
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    """Around each wait for the other ranks (`parallel.own_time`, which looks at a layer's way forward)."""

    def gather(self, x: X) -> X:
        """Into a block: the tokens of all ranks under sequence parallelism, else `x` itself."""
        if not self.sequence_parallel or self.group.size() == 1:
            return x
        if isinstance(x, Float8Rows):
            values = self.gather(x.values.view(torch.uint8)).view(x.values.dtype)
            return Float8Rows(values, self.gather(x.scales))
        whole = x.new_empty(x.shape[0] * self.group.size(), *x.shape[1:])
        with self.waiting():
            torch.distributed.all_gather_into_tensor(whole, x.contiguous(), group=self.group)
        return whole

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Out of a block: the sum over the ranks, of its own tokens alone under sequence parallelism. Consumes `x`."""
        first, *rest = self.begin_to_reduce(x)()
        return first.add_(*rest) if rest else first

    def begin_to_reduce(self, x: torch.Tensor) -> Callable[[], Addends]:
        """`reduce`, under way; what is returned waits for it and gives the sum, or what there is to add up."""
        if self.group.size() == 1:
            return lambda: (x,)
        if self.exchange is not None:
            transfer = self.exchange.begin(x)
            transfer.send(slice(None), last=True)
            return lambda: (x, transfer.received())
        if not self.sequence_parallel:
            work = torch.distributed.all_reduce(x, group=self.group, async_op=True)
            return lambda: (work.wait(), (x,))[1]
        own = x.new_empty(x.shape[0] // self.group.size(), *x.shape[1:])
        work = torch.distributed.reduce_scatter_tensor(own, x, group=self.group, async_op=True)
        return lambda: (work.wait(), (own,))[1]

    def reduced_product(self, products: Products, x: Operand, weight: torch.Tensor) -> Addends:
        """`reduce` of x @ weight^T, in parts where there is an exchange: one is sent while the next is computed."""
        if self.exchange is None or isinstance(x, Float8Rows):
            own = products.product(x, weight)
            with self.waiting():
                return self.begin_to_reduce(own)()
        own = x.new_empty(len(x), len(weight))
        transfer = self.exchange.begin(own)
        size = -(-len(x) // _PARTS)
        for begin in range(0, len(x), size):
            part = slice(begin, begin + size)
            torch.mm(x[part], weight.t(), out=own[part])
            transfer.send(part, last=begin + size >= len(x))
        with self.waiting():
            return own, transfer.received()

    def of_all_ranks(self, x: torch.Tensor) -> torch.Tensor:
        """What each rank has, of one shape [...], in their order [ranks, ...]."""
        whole = x.new_empty(self.group.size(), *x.shape)
        if self.exchange is None:
            torch.distributed.all_gather_into_tensor(whole.flatten(0, 1), x, group=self.group)
        else:
            whole[self.group.rank()], whole[1 - self.group.rank()] = self.begin_to_reduce(x)()
        return whole

    def sum_of_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """What each rank summed over the tokens it holds between blocks, summed over all tokens. Consumes `x`."""
        if self.sequence_parallel and self.group.size() > 1:
            torch.distributed.all_reduce(x, group=self.group)
        return x

    def sum_of_heads(self, x: torch.Tensor) -> torch.Tensor:
        """What each rank summed over its own heads, summed over all heads. Consumes `x`."""
        if self.group.size() > 1:
            torch.distributed.all_reduce(x, group=self.group)
        return x


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a layer does with one micro-batch, besides its weights."""

    products: Products
    parallel: TensorParallel
    batch: int
    """Rows of the micro-batch, b."""
    groups: int
    """Query groups of this rank, g/tp."""
    eps: float
    """Epsilon of the norms."""
    cos: torch.Tensor
    """Cosine of each position's angles, fp32 [s/cp or t, d/2]; token i takes row i modulo the number of rows."""
    sin: torch.Tensor
    attend: Attend
    recomputes: bool
    """Keep only a layer's input, and run its forward pass again in the backward pass."""


class Weights(NamedTuple):
    """Parameters of a layer as Megatron lays them out."""

    norm1: torch.Tensor
    """[h]"""
    qkv: torch.Tensor
    """[(n + 2 g) d, h]"""
    proj: torch.Tensor
    """[h, n d]"""
    norm2: torch.Tensor
    """[h]"""
    fc1: torch.Tensor
    """Gate over up [2 f, h]."""
    fc2: torch.Tensor
    """[h, f]"""
    qkv_bias: torch.Tensor | None = None
    """[(n + 2 g) d]"""
    query_norm: torch.Tensor | None = None
    """[d]"""
    key_norm: torch.Tensor | None = None
    """[d]"""


class _Kept(NamedTuple):
    """What the backward pass of a layer needs."""

    total1: torch.Tensor
    """[t, h]: the residual stream before the attention block."""
    inv_rms1: torch.Tensor
    """[t]: 1 / rms of what the first norm took."""
    heads: tuple[torch.Tensor, ...]
    """Query, key and value: leaves of autograd's graph that ends in `context`."""
    context: torch.Tensor
    """[b, s, n, d]: what attention gives."""
    total2: torch.Tensor
    """[t, h]: the residual stream before the feed-forward block."""
    inv_rms2: torch.Tensor
    """[t]: 1 / rms of what the second norm took."""
    gate_up: torch.Tensor
    """[t, 2f]: gate and up, in the order of `Products.swiglu`."""
    normed_heads: tuple[torch.Tensor, ...]
    """Where queries and keys are normalized: what was, [b, s, (n + 2 g) d], and 1 / rms of each head."""


def _forward(
    plan: Plan, x: torch.Tensor, deltas: Addends, weights: Weights, *, keeps: bool
) -> tuple[torch.Tensor, Addends, _Kept]:
    """(x, deltas) -> (x', deltas'), each [t, h]: the residual stream is their sum, and the next norm adds them up.

    There are no deltas before the first layer, where nothing is left to add.
    """
    gated, kept = _up_to_gated(plan, x, deltas, weights, keeps=keeps)
    return kept.total2, plan.parallel.reduced_product(plan.products, gated, weights.fc2), kept


def _up_to_gated(
    plan: Plan, x: torch.Tensor, deltas: Addends, weights: Weights, *, keeps: bool
) -> tuple[Operand, _Kept]:
    """`_forward` without its last product, whose result the backward pass does not need: silu(gate) up [t, f]."""
    products, parallel = plan.products, plan.parallel
    kernels, float8 = products.kernels, products.float8
    total1, normed, inv_rms1 = kernels.add_rms_norm(x, deltas, weights.norm1, plan.eps, float8=float8)
    qkv = products.product(parallel.gather(normed), weights.qkv, weights.qkv_bias)
    qkv = qkv.view(plan.batch, -1, qkv.shape[1])  # [b, s, (n + 2 g) d]
    normed_heads: tuple[torch.Tensor, ...] = ()
    if weights.query_norm is not None:
        before = qkv
        qkv, inv_rms = kernels.norm_heads(before, weights.query_norm, weights.key_norm, plan.groups, plan.eps)
        normed_heads = before, inv_rms
        del before
    heads = kernels.split_rotate(qkv, plan.cos, plan.sin, plan.groups)
    del qkv, normed
    with torch.set_grad_enabled(keeps):
        heads = tuple(head.requires_grad_(keeps) for head in heads)
        context = plan.attend(*heads)  # [b, s, n, d]
    deltas = parallel.reduced_product(products, products.operand(_rows(context.detach())), weights.proj)
    total2, normed, inv_rms2 = kernels.add_rms_norm(total1, deltas, weights.norm2, plan.eps, float8=float8)
    del deltas
    gate_up, gated = products.swiglu(parallel.gather(normed), weights.fc1)
    return gated, _Kept(total1, inv_rms1, heads, context, total2, inv_rms2, gate_up, normed_heads)


def _rows(context: torch.Tensor) -> torch.Tensor:
    """[b, s, n, d] -> [t, n d]."""
    return context.reshape(context.shape[0] * context.shape[1], -1)


class _Layer(WeightFunction):
    @staticmethod
    def compute(ctx: Any, x: torch.Tensor, *deltas: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ANN401
        plan, keeps = ctx.setup, any(ctx.needs_input_grad)
        total, deltas, kept = _forward(plan, x, deltas, ctx.weights, keeps=keeps and not plan.recomputes)
        if keeps and plan.recomputes:
            ctx.save_for_backward(kept.total1)
        elif keeps:
            ctx.graph = kept.heads, kept.context
            ctx.save_for_backward(
                kept.total1, kept.inv_rms1, kept.total2, kept.inv_rms2, kept.gate_up, *kept.normed_heads
            )
        return total, *deltas

    @staticmethod
    def gradients(ctx: Any, grad_total: torch.Tensor, grad_delta: torch.Tensor, *_: torch.Tensor) -> Gradients:  # noqa: ANN401
        """Deltas are only ever added up, so that all have one gradient: the first's."""
        plan, saved = ctx.setup, ctx.saved_tensors
        if plan.recomputes:
            kept = _up_to_gated(plan, saved[0], (), ctx.weights, keeps=True)[1]
        else:
            (heads, context), ctx.graph = ctx.graph, None  # let go of what the node would keep to the end
            total1, inv_rms1, total2, inv_rms2, gate_up, *normed_heads = saved
            kept = _Kept(total1, inv_rms1, heads, context, total2, inv_rms2, gate_up, tuple(normed_heads))
        grad_x, grad_weights = _backward(plan, ctx.weights, kept, grad_total, grad_delta)
        return (grad_x,) * ctx.inputs, grad_weights


def _backward(
    plan: Plan, weights: Weights, kept: _Kept, grad_total: torch.Tensor, grad_delta: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Gradients of `_forward`: of x [t, h] (each delta has the same) and of its weights. Consumes `kept.gate_up`."""
    products, parallel = plan.products, plan.parallel
    kernels = products.kernels
    # feed-forward block
    grad_delta = parallel.gather(grad_delta)
    grad_gate_up, gated, operand = products.swiglu_backward(grad_delta, weights.fc2, kept.gate_up)
    grad_normed = parallel.begin_to_reduce(products.swiglu_grad_x(operand, weights.fc1))
    del operand
    grad_fc2_weight = weight_gradient(weights.fc2, grad_delta, gated)  # while the ranks send
    del gated, grad_delta
    grad_total, normed, grad_norm2_weight = kernels.rms_norm_backward(
        grad_normed(), kept.total2, kept.inv_rms2, weights.norm2, grad_total
    )
    # attention block
    grad_delta = parallel.gather(grad_total)
    grad_context = products.product_back(products.operand(grad_delta), weights.proj).view(kept.context.shape)
    grad_heads = torch.autograd.grad(kept.context, kept.heads, grad_context)
    grad_qkv = kernels.split_rotate_backward(*grad_heads, plan.cos, plan.sin)
    grad_head_norms: tuple[torch.Tensor, ...] = ()
    if kept.normed_heads:
        given = (grad_qkv, *kept.normed_heads, weights.query_norm, weights.key_norm)
        grad_qkv, *grad_head_norms = kernels.norm_heads_backward(*given, plan.groups)
    grad_qkv = grad_qkv.flatten(0, 1)
    grad_normed = parallel.begin_to_reduce(products.product_back(products.operand(grad_qkv), weights.qkv))
    grad_proj_weight = weight_gradient(weights.proj, grad_delta, _rows(kept.context.detach()))  # while the ranks send
    grad_fc1_weight = products.swiglu_grad_fc1(weights.fc1, grad_gate_up, parallel.gather(normed))
    del grad_gate_up, normed
    grad_x, normed, grad_norm1_weight = kernels.rms_norm_backward(
        grad_normed(), kept.total1, kept.inv_rms1, weights.norm1, grad_total
    )
    grad_qkv_weight = weight_gradient(weights.qkv, grad_qkv, parallel.gather(normed))
    grad_norm1_weight = added_gradient(weights.norm1, parallel.sum_of_tokens(grad_norm1_weight))
    grad_norm2_weight = added_gradient(weights.norm2, parallel.sum_of_tokens(grad_norm2_weight))
    grad_qkv_bias = grad_query_norm = grad_key_norm = None
    if weights.qkv_bias is not None:
        grad_qkv_bias = added_gradient(weights.qkv_bias, grad_qkv.sum(dim=0, dtype=torch.float32))
    if weights.query_norm is not None and weights.key_norm is not None:
        grad_query_norm, grad_key_norm = parallel.sum_of_heads(torch.stack(grad_head_norms))
        grad_query_norm = added_gradient(weights.query_norm, grad_query_norm)
        grad_key_norm = added_gradient(weights.key_norm, grad_key_norm)
    return grad_x, (
        grad_norm1_weight,
        grad_qkv_weight,
        grad_proj_weight,
        grad_norm2_weight,
        grad_fc1_weight,
        grad_fc2_weight,
        grad_qkv_bias,
        grad_query_norm,
        grad_key_norm,
    )


def layer(plan: Plan, x: torch.Tensor, deltas: Addends, weights: Weights) -> tuple[torch.Tensor, ...]:
    """One decoder layer.

    Args:
        plan: see `Plan`.
        x: the residual stream [t, h].
        deltas: what the layer before adds to it, as up to two addends [t, h]. The first norm adds them on its way.
        weights: see `Weights`.

    Returns:
        The residual stream before this layer's feed-forward block adds to it, and the addends of what it adds, [t, h].
    """
    return _Layer.of(plan, weights, x, *deltas)
