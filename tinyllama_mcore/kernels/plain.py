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
        float8: give `normed` in float8.

    Returns:
        `total`, their sum [t, h], rounded once; `normed` [t, h]; `inv_rms`, 1 / rms of each row, fp32 [t].
    """
    total = (x.float() + _sum(deltas)).to(x.dtype) if deltas else x
    wide = total.float()
    inv_rms = torch.rsqrt(wide.square().mean(dim=-1) + eps)
    normed = wide * inv_rms[:, None] * weight.float()
    return total, narrowed(normed) if float8 else normed.to(x.dtype), inv_rms


def _sum(addends: Addends) -> torch.Tensor:
    """In fp32."""
    first, *rest = (addend.float() for addend in addends)
    return first + rest[0] if rest else first


def rms_norm_backward(
    grad_normed: Addends,
    total: torch.Tensor,
    inv_rms: torch.Tensor,
    weight: torch.Tensor,
    grad_total: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The backward pass of `add_rms_norm`; x and the deltas have the same gradient.

    Args:
        grad_normed: as one or two addends [t, h].
        total: as `add_rms_norm` returned it [t, h].
        inv_rms: likewise, fp32 [t].
        weight: of the norm [h].
        grad_total: of `total` by its other use [t, h]; None: it has none.

    Returns:
        `grad_x` [t, h], which is that of each delta too; `normed` again [t, h]; `grad_weight`, fp32 [h].
    """
    unit = total.float() * inv_rms[:, None]
    grad = _sum(grad_normed)
    grad_unit = grad * weight.float()
    grad_x = (grad_unit - unit * (grad_unit * unit).mean(dim=-1, keepdim=True)) * inv_rms[:, None]
    if grad_total is not None:
        grad_x = grad_x + grad_total.float()
    return grad_x.to(total.dtype), (unit * weight.float()).to(total.dtype), (grad * unit).sum(dim=0)


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
    grad_query: torch.Tensor, grad_key: torch.Tensor, grad_value: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """The backward pass of `split_rotate`: gradients in the shapes of its outputs to `grad_qkv` [b, s, (n + 2 g) d]."""
    b, s, groups, width = grad_key.shape
    turned = _turned(grad_query, cos, -sin).view(b, s, groups, -1, width)
    grad_qkv = torch.cat([turned, _turned(grad_key, cos, -sin)[:, :, :, None], grad_value[:, :, :, None]], dim=3)
    return grad_qkv.flatten(2)


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
        `normed`, the same with queries and keys normalized and values as they are; `inv_rms`, 1 / rms of each head,
        fp32 [b, s, n + 2 g].
    """
    wide = qkv.unflatten(2, (groups, -1, len(query_weight))).float()  # [b, s, g, n/g + 2, d]
    inv_rms = torch.rsqrt(wide.square().mean(dim=-1) + eps)
    normed = (wide * inv_rms[..., None] * _gain(query_weight, key_weight, wide.shape[3])).to(qkv.dtype)
    normed[..., -1, :] = wide[..., -1, :]
    return normed.flatten(2), inv_rms.flatten(2)


def norm_heads_backward(
    grad_normed: torch.Tensor,
    qkv: torch.Tensor,
    inv_rms: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The backward pass of `norm_heads`. Writes over `grad_normed`.

    Args:
        grad_normed: [b, s, (n + 2 g) d]; becomes `grad_qkv`.
        qkv: what `norm_heads` took.
        inv_rms: as `norm_heads` returned it, fp32 [b, s, n + 2 g].
        query_weight: as for `norm_heads`.
        key_weight: as for `norm_heads`.
        groups: as for `norm_heads`.

    Returns:
        `grad_qkv`, `grad_query_weight` and `grad_key_weight`, fp32 [d].
    """
    shape = (groups, -1, len(query_weight))
    grad = grad_normed.unflatten(2, shape).float()
    unit = qkv.unflatten(2, shape).float() * inv_rms.unflatten(2, shape[:2])[..., None]
    grad_unit = grad * _gain(query_weight, key_weight, grad.shape[3])
    mean = (grad_unit * unit).mean(dim=-1, keepdim=True)
    grad_qkv = (grad_unit - unit * mean) * inv_rms.unflatten(2, shape[:2])[..., None]
    grad_qkv[..., -1, :] = grad[..., -1, :]
    grad_gain = (grad * unit).flatten(0, 2)
    grad_normed.copy_(grad_qkv.flatten(2))
    return grad_normed, grad_gain[:, :-2].sum(dim=(0, 1)), grad_gain[:, -2].sum(dim=0)


def _gain(query_weight: torch.Tensor, key_weight: torch.Tensor, slots: int) -> torch.Tensor:
    """The weight of each head of a query group, fp32 [n/g + 2, d]; what it is for the value is not used."""
    return torch.stack([query_weight] * (slots - 2) + [key_weight] * 2).float()


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Channels i and i + d/2 of each head [b, s, heads, d] turned by an angle (RoFormer, arXiv 2104.09864)."""
    b, s, *_ = x.shape
    cos, sin = (table.repeat(b * s // len(table), 1).view(b, s, 1, -1) for table in (cos, sin))
    one, other = x.float().chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1).to(x.dtype)


def swiglu(gate_up: torch.Tensor, *, float8: bool = False) -> Operand:
    """silu(gate) * up (Shazeer 2020, arXiv 2002.05202): `gate_up`, gate before up [t, 2f], to `gated` [t, f].

    `float8`: give the result in float8.
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    gated = torch.nn.functional.silu(gate) * up
    return narrowed(gated) if float8 else gated.to(gate_up.dtype)


def swiglu_backward(
    grad_gated: torch.Tensor, gate_up: torch.Tensor, *, float8: bool = False
) -> tuple[torch.Tensor, torch.Tensor, Operand]:
    """The backward pass of `swiglu`. Writes over `gate_up`.

    Args:
        grad_gated: [t, f].
        gate_up: what `swiglu` took [t, 2f]; becomes `grad_gate_up`.
        float8: give `grad_gate_up` in float8 too.

    Returns:
        `grad_gate_up` [t, 2f], `gated` again [t, f], and `grad_gate_up` as the next product takes it.
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    silu, grad = gate * sigmoid, grad_gated.float()
    gated = (silu * up).to(gate_up.dtype)
    grad_gate_up = torch.cat([grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu], dim=-1)
    gate_up.copy_(grad_gate_up)
    return gate_up, gated, narrowed(grad_gate_up) if float8 else gate_up


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
    logits: torch.Tensor, labels: torch.Tensor, log_sum: torch.Tensor, grad_loss: torch.Tensor, first: int, columns: int
) -> torch.Tensor:
    """The backward pass of the loss. Writes over `logits`, which become `grad_logits`.

    Args:
        logits: [t, v].
        labels: as for `cross_entropy`.
        log_sum: over the columns of all ranks, fp32 [t].
        grad_loss: of each token's loss, fp32 [t].
        first: as for `cross_entropy`.
        columns: as for `cross_entropy`.
    """
    grad_logits = torch.exp(logits.float() - log_sum[:, None])
    grad_logits[:, columns:] = 0
    place = labels - first
    own = (place >= 0) & (place < columns)
    grad_logits[torch.nonzero(own).squeeze(1), place[own]] -= 1
    return logits.copy_(grad_logits * grad_loss[:, None])


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
    grad: torch.Tensor,
    scalars: torch.Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One update of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) in fp32, in place, without asking the GPU.

    Args:
        weights: bf16 [n]; with `rest`, int16 [n], the halves of the master weights (`kernels.halves`).
        rest: see `weights`.
        moments: first and second, fp32 [n] each.
        grad: of the master weights, fp32 [n].
        scalars: fp32 [5] on the same device: what `grad` is divided by; 1 - rate x weight decay; rate / (1 -
            beta1^step); sqrt(1 - beta2^step); and 1 where the update is made, 0 where nothing may change.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
    """
    divisor, decay, rate, correction, made = scalars
    if not made:
        return
    masters = torch.empty_like(grad)
    halves.join(masters, weights, rest)
    first, second = moments
    scaled = grad / divisor
    first.lerp_(scaled, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(scaled, scaled, value=1 - betas[1])
    masters.mul_(decay).sub_(rate * first / (second.sqrt() / correction + eps))
    halves.split(masters, weights, rest)
