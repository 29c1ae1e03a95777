"""The pieces of a decoder layer between its matrix products, in plain torch: for a CPU, and as the reference.

`triton_kernels` has the same functions, each one pass over memory; tests/kernels holds the two to each other. Autograd
does not see them: each has its backward pass beside it, and `model.fused` calls both.
Shapes: b micro-batch, s sequence, t = b s tokens, h hidden, n query heads, g query groups, d head dim, f feed-forward,
v columns of the logits. Everything is computed in fp32 and rounded once to the dtype of the inputs.
"""

from __future__ import annotations

import torch

from tinyllama_mcore.kernels import halves
from tinyllama_mcore.kernels.float8 import Float8Rows, Operand, narrowed

Addends = tuple[torch.Tensor, ...]
"""Matrices whose sum is meant: one, or what two tensor-parallel ranks have of it."""


def float8_rows(x: torch.Tensor, out: Float8Rows | None = None) -> Float8Rows:
    """A matrix [r, c] in float8, each row with its scale; in the place of `out`, where there is one."""
    return _put(narrowed(x), out)


def float8_columns(x: torch.Tensor, out: Float8Rows | None = None) -> Float8Rows:
    """The transpose [c, r] of a matrix [r, c] in float8, each row of the transpose with its scale; likewise."""
    return _put(narrowed(x.t()), out)


def _put(made: Float8Rows, out: Float8Rows | None) -> Float8Rows:
    if out is None:
        return made
    for place, tensor in zip(out, made, strict=True):
        place.copy_(tensor)
    return out


def add_rms_norm(
    x: torch.Tensor, deltas: Addends, weight: torch.Tensor, eps: float, *, float8: bool = False
) -> tuple[torch.Tensor, Operand, torch.Tensor]:
    """The residual stream after an addition, and its RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467).

    Args:
        x: the residual stream [t, h].
        deltas: what a block adds to it, as up to two addends [t, h].
        weight: of the norm [h].
        eps: added to the mean square.
        float8: give what is normalized in float8.

    Returns:
        Their sum [t, h], rounded once, the same normalized [t, h], and 1 / rms of each row, fp32 [t].
    """
    total = (x.float() + _sum(deltas)).to(x.dtype) if deltas else x
    wide = total.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1) + eps)
    normed = wide * scale[:, None] * weight.float()
    return total, narrowed(normed) if float8 else normed.to(x.dtype), scale


def _sum(addends: Addends) -> torch.Tensor:
    """In fp32."""
    first, *rest = (addend.float() for addend in addends)
    return first + rest[0] if rest else first


def rms_norm_backward(
    gradients: Addends,
    total: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    residual_gradient: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The backward pass of `add_rms_norm`; x and the deltas have the same gradient.

    Args:
        gradients: that of the normalized output, as one or two addends [t, h].
        total: the sum [t, h] that `add_rms_norm` returned.
        scale: 1 / rms of each row, fp32 [t].
        weight: of the norm [h].
        residual_gradient: of the sum by its other use [t, h]; None: it has none.

    Returns:
        The gradient of x and of each delta [t, h], the normalized output again [t, h], the gradient of the weight, fp32
        [h].
    """
    unit = total.float() * scale[:, None]
    wide = _sum(gradients)
    back = wide * weight.float()
    back = (back - unit * (back * unit).mean(dim=-1, keepdim=True)) * scale[:, None]
    if residual_gradient is not None:
        back = back + residual_gradient.float()
    return back.to(total.dtype), (unit * weight.float()).to(total.dtype), (wide * unit).sum(dim=0)


def split_rotate(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values out of Megatron's one matrix, queries and keys turned by their positions.

    Args:
        qkv: [b, s, (n + 2 g) d]: of each query group its queries, then a key, then a value.
        cos: of each position and pair of channels, fp32 [period, d/2]; token i of b s has position i modulo the period.
        sin: likewise.
        groups: g.

    Returns:
        Queries [b, s, n, d], keys [b, s, g, d], values [b, s, g, d].
    """
    heads = qkv.view(*qkv.shape[:2], groups, -1, 2 * cos.shape[1])  # [b, s, g, n/g + 2, d]
    query, key, value = heads[..., :-2, :].flatten(2, 3), heads[..., -2, :], heads[..., -1, :]
    return _turned(query, cos, sin), _turned(key, cos, sin), value.contiguous()


def split_rotate_backward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """The backward pass of `split_rotate`: gradients of its outputs to the gradient of qkv [b, s, (n + 2 g) d]."""
    b, s, groups, width = key.shape
    turned = _turned(query, cos, -sin).view(b, s, groups, -1, width)
    back = torch.cat([turned, _turned(key, cos, -sin)[:, :, :, None], value[:, :, :, None]], dim=3)
    return back.flatten(2)


def norm_heads(
    qkv: torch.Tensor, query_weight: torch.Tensor, key_weight: torch.Tensor, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of each query and key (Qwen-3, arXiv 2505.09388; Henry et al. 2020, arXiv 2010.04245).

    Args:
        qkv: [b, s, (n + 2 g) d]: of each query group its queries, then a key, then a value.
        query_weight: of the queries' norm [d].
        key_weight: of the keys' norm [d].
        groups: g.
        eps: added to the mean square.

    Returns:
        The same with queries and keys normalized, values as they are, and 1 / rms of each head, fp32 [b, s, n + 2 g].
    """
    wide = qkv.unflatten(2, (groups, -1, len(query_weight))).float()  # [b, s, g, n/g + 2, d]
    scale = torch.rsqrt(wide.square().mean(dim=-1) + eps)
    normed = (wide * scale[..., None] * _gain(query_weight, key_weight, wide.shape[3])).to(qkv.dtype)
    normed[..., -1, :] = wide[..., -1, :]
    return normed.flatten(2), scale.flatten(2)


def norm_heads_backward(
    gradient: torch.Tensor,
    qkv: torch.Tensor,
    scale: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The backward pass of `norm_heads`. Writes over `gradient`.

    Args:
        gradient: of the output [b, s, (n + 2 g) d]; becomes that of `qkv`.
        qkv: what `norm_heads` took.
        scale: 1 / rms of each head, fp32 [b, s, n + 2 g].
        query_weight: as for `norm_heads`.
        key_weight: as for `norm_heads`.
        groups: as for `norm_heads`.

    Returns:
        The gradient of qkv, and those of the two weights, fp32 [d].
    """
    shape = (groups, -1, len(query_weight))
    wide = gradient.unflatten(2, shape).float()
    unit = qkv.unflatten(2, shape).float() * scale.unflatten(2, shape[:2])[..., None]
    back = wide * _gain(query_weight, key_weight, wide.shape[3])
    back = (back - unit * (back * unit).mean(dim=-1, keepdim=True)) * scale.unflatten(2, shape[:2])[..., None]
    back[..., -1, :] = wide[..., -1, :]
    product = (wide * unit).flatten(0, 2)
    gradient.copy_(back.flatten(2))
    return gradient, product[:, :-2].sum(dim=(0, 1)), product[:, -2].sum(dim=0)


def _gain(query_weight: torch.Tensor, key_weight: torch.Tensor, slots: int) -> torch.Tensor:
    """The weight of each head of a query group, fp32 [n/g + 2, d]; what it is for the value is not used."""
    return torch.stack([query_weight] * (slots - 2) + [key_weight] * 2).float()


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Channels i and i + d/2 of each head [b, s, heads, d] turned by an angle (RoFormer, arXiv 2104.09864)."""
    b, s, *_ = x.shape
    cos, sin = (table.repeat(b * s // len(table), 1).view(b, s, 1, -1) for table in (cos, sin))
    one, other = x.float().chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1).to(x.dtype)


def swiglu(both: torch.Tensor, *, float8: bool = False) -> Operand:
    """silu(gate) * up (Shazeer 2020, arXiv 2002.05202): gate and up side by side [t, 2f] to [t, f].

    `float8`: give the result in float8.
    """
    gate, up = both.float().chunk(2, dim=-1)
    out = torch.nn.functional.silu(gate) * up
    return narrowed(out) if float8 else out.to(both.dtype)


def swiglu_backward(
    gradient: torch.Tensor, both: torch.Tensor, *, float8: bool = False
) -> tuple[torch.Tensor, torch.Tensor, Operand]:
    """The backward pass of `swiglu`. Writes over `both`.

    Args:
        gradient: of the output [t, f].
        both: the input [t, 2f]; becomes its own gradient.
        float8: give the gradient in float8 too.

    Returns:
        The gradient of the input [t, 2f], the output again [t, f], and that gradient as the next product takes it.
    """
    gate, up = both.float().chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    silu, wide = gate * sigmoid, gradient.float()
    output = (silu * up).to(both.dtype)
    back = torch.cat([wide * up * (sigmoid + silu * (1 - sigmoid)), wide * silu], dim=-1)
    both.copy_(back)
    return both, output, narrowed(back) if float8 else both


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, first: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two parts of the loss that one rank's columns of the logits give: loss = log_sum - target, over all ranks.

    Args:
        logits: [t, v].
        labels: the right column of each token among those of all ranks, int64 [t].
        first: number of this rank's first column among those of all ranks.
        columns: how many of the v columns stand for a token; the rest pad.

    Returns:
        The logarithm of the sum of exp(logits), fp32 [t] (-inf where no column stands for a token), and the logit of
        the label, fp32 [t], 0 where another rank has it.
    """
    real = logits[:, :columns].float()
    place = labels - first
    own = (place >= 0) & (place < columns)
    target = real.gather(1, place.clamp(0, columns - 1)[:, None]).squeeze(1) if columns else torch.zeros_like(labels)
    return torch.logsumexp(real, dim=-1), target.float().masked_fill(~own, 0.0)


def cross_entropy_backward(
    logits: torch.Tensor, labels: torch.Tensor, log_sum: torch.Tensor, gradient: torch.Tensor, first: int, columns: int
) -> torch.Tensor:
    """The backward pass of the loss. Writes over `logits`, which become their own gradient.

    Args:
        logits: [t, v].
        labels: as for `cross_entropy`.
        log_sum: over the columns of all ranks, fp32 [t].
        gradient: of each token's loss, fp32 [t].
        first: as for `cross_entropy`.
        columns: as for `cross_entropy`.
    """
    back = torch.exp(logits.float() - log_sum[:, None])
    back[:, columns:] = 0
    place = labels - first
    own = (place >= 0) & (place < columns)
    back[torch.nonzero(own).squeeze(1), place[own]] -= 1
    return logits.copy_(back * gradient[:, None])


def add_rows(buffer: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """buffer[rows[i]] += values[i] for every i, in an order that does not change from run to run.

    Args:
        buffer: fp32 [v, h].
        rows: int64 [t].
        values: [t, h].
    """
    buffer.index_add_(0, rows, values.to(buffer.dtype))


def adamw(
    weights: torch.Tensor,
    rest: torch.Tensor,
    moments: tuple[torch.Tensor, torch.Tensor],
    gradient: torch.Tensor,
    scalars: torch.Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One update of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) in fp32, in place, without asking the GPU.

    Args:
        weights: bf16 [n]; with `rest`, int16 [n], the halves of the master weights (`kernels.halves`).
        rest: see `weights`.
        moments: first and second, fp32 [n] each.
        gradient: fp32 [n].
        scalars: fp32 [5] on the same device: what the gradient is divided by; 1 - rate x weight decay; rate / (1 -
            beta1^step); sqrt(1 - beta2^step); and 1 where the update is made, 0 where nothing may change.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
    """
    divisor, decay, rate, correction, made = scalars
    if not made:
        return
    masters = torch.empty_like(gradient)
    halves.join(masters, weights, rest)
    first, second = moments
    scaled = gradient / divisor
    first.lerp_(scaled, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(scaled, scaled, value=1 - betas[1])
    masters.mul_(decay).sub_(rate * first / (second.sqrt() / correction + eps))
    halves.split(masters, weights, rest)
