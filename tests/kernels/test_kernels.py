"""Each piece of a fused layer: plain torch against autograd in float64, Triton against plain torch.

Without a GPU Triton's interpreter runs the kernels, where Triton is installed; with one, the GPU does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tinyllama_mcore.kernels import float8, halves, plain

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
Tensors = tuple[torch.Tensor, ...]


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


TOKENS, BATCH, HIDDEN, GROUPS, HEADS, WIDTH, FFN, VOCABULARY = 12, 2, 96, 2, 6, 16, 80, 50
"""No size is a power of two but the width of a head."""


def _tables(period: int) -> Tensors:
    angles = torch.outer(torch.arange(period, dtype=torch.float32), torch.rand(WIDTH // 2)).to(DEVICE)
    return angles.cos(), angles.sin()


def _labels() -> torch.Tensor:
    return torch.randint(0, 2 * VOCABULARY, (TOKENS,), device=DEVICE)


def _two(x: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return x(TOKENS, HIDDEN), x(TOKENS, HIDDEN)


def _packed(x: Callable[..., torch.Tensor]) -> torch.Tensor:
    return x(BATCH, TOKENS // BATCH, (HEADS + 2 * GROUPS) * WIDTH)


def _heads(x: Callable[..., torch.Tensor]) -> Tensors:
    """Gradients as an attention kernel leaves them: heads outside of positions."""
    return tuple(x(BATCH, count, TOKENS // BATCH, WIDTH).transpose(1, 2) for count in (HEADS, GROUPS, GROUPS))


def _added(k: ModuleType, rows: int, x: Callable[..., torch.Tensor]) -> Tensors:
    buffer = torch.zeros(rows, HIDDEN, device=DEVICE)
    k.add_rows(buffer, torch.randint(0, rows, (3 * TOKENS,), device=DEVICE), x(3 * TOKENS, HIDDEN))
    return (buffer,)


def _in_turns(k: ModuleType, x: Callable[..., torch.Tensor]) -> Tensors:
    """The gradients of a norm of heads by programs that take several tokens: by few, where each is interpreted."""
    tokens, programs = (600, 528) if ON_GPU else (20, 8)
    with pytest.MonkeyPatch.context() as patch:
        if k is not plain:
            patch.setattr(sys.modules[k.norm_heads_backward.__module__], "_PROGRAMS_OF_A_SUM", programs)
        scales = torch.rand(1, tokens, 3, device=DEVICE)
        return k.norm_heads_backward(x(1, tokens, 12), x(1, tokens, 12), scales, x(4), x(4), 1)


def _updated(k: ModuleType, x: Callable[..., torch.Tensor], made: float) -> Tensors:
    """What an update of AdamW leaves of halves, moments and master weights."""
    n = 5000
    masters, gradient = x(n).float(), x(n).float()
    weights, rest = (
        torch.empty(n, dtype=torch.bfloat16, device=DEVICE),
        torch.empty(n, dtype=torch.int16, device=DEVICE),
    )
    halves.split(masters, weights, rest)
    moments = (x(n).float(), x(n).float().square())
    scalars = torch.tensor([1.5, 0.999, 0.02, 0.4, made], device=DEVICE)
    k.adamw(weights, rest, moments, gradient, scalars, (0.9, 0.95), 1e-8)
    halves.join(masters, weights, rest)
    return (masters, *moments)


def _wide(results: tuple) -> Tensors:
    """Results with matrices in float8 as the numbers that they stand for."""
    return tuple(float8.widened(result) if isinstance(result, float8.Float8Rows) else result for result in results)


PIECES: dict[str, Callable[[ModuleType, Callable[..., torch.Tensor]], Tensors]] = {
    "norm": lambda k, x: k.add_rms_norm(x(TOKENS, HIDDEN), (), x(HIDDEN), 1e-5),
    "add and norm": lambda k, x: k.add_rms_norm(x(TOKENS, HIDDEN), (x(TOKENS, HIDDEN),), x(HIDDEN), 1e-5),
    "add two and norm": lambda k, x: k.add_rms_norm(x(TOKENS, HIDDEN), _two(x), x(HIDDEN), 1e-5),
    "norm backward": lambda k, x: k.rms_norm_backward(
        (x(TOKENS, HIDDEN),), x(TOKENS, HIDDEN), torch.rand(TOKENS, device=DEVICE), x(HIDDEN), None
    ),
    "add and norm backward": lambda k, x: k.rms_norm_backward(
        (x(TOKENS, HIDDEN),), x(TOKENS, HIDDEN), torch.rand(TOKENS, device=DEVICE), x(HIDDEN), x(TOKENS, HIDDEN)
    ),
    "norm backward of two addends": lambda k, x: k.rms_norm_backward(
        _two(x), x(TOKENS, HIDDEN), torch.rand(TOKENS, device=DEVICE), x(HIDDEN), x(TOKENS, HIDDEN)
    ),
    "rotation": lambda k, x: k.split_rotate(_packed(x), *_tables(TOKENS // BATCH), GROUPS),
    "rotation of documents": lambda k, x: k.split_rotate(_packed(x), *_tables(TOKENS), GROUPS),
    "rotation backward": lambda k, x: (k.split_rotate_backward(*_heads(x), *_tables(TOKENS // BATCH)),),
    "norm of heads": lambda k, x: k.norm_heads(_packed(x), x(WIDTH), x(WIDTH), GROUPS, 1e-5),
    "norm of heads backward": lambda k, x: k.norm_heads_backward(
        _packed(x), _packed(x), torch.rand(BATCH, TOKENS // BATCH, HEADS + 2 * GROUPS, device=DEVICE),
        x(WIDTH), x(WIDTH), GROUPS,
    ),
    "norm of heads, no power of two": lambda k, x: k.norm_heads(
        x(BATCH, TOKENS, 5 * 3 * 12), x(12), x(12), 3, 1e-5
    ),
    "norm of heads backward, more tokens than programs": lambda k, x: _in_turns(k, x),
    "swiglu": lambda k, x: (k.swiglu(x(TOKENS, 2 * FFN)),),
    "rows in float8": lambda k, x: _wide((k.float8_rows(x(TOKENS, HIDDEN)),)),
    "columns in float8": lambda k, x: _wide((k.float8_columns(x(FFN, HIDDEN)),)),
    "norm in float8": lambda k, x: _wide(k.add_rms_norm(x(TOKENS, HIDDEN), (), x(HIDDEN), 1e-5, float8=True)),
    "swiglu in float8": lambda k, x: _wide((k.swiglu(x(TOKENS, 2 * FFN), float8=True),)),
    "swiglu backward in float8": lambda k, x: _wide(
        k.swiglu_backward(x(TOKENS, FFN), x(TOKENS, 2 * FFN), float8=True)
    ),
    "swiglu backward": lambda k, x: k.swiglu_backward(x(TOKENS, FFN), x(TOKENS, 2 * FFN)),
    "loss": lambda k, x: k.cross_entropy(x(TOKENS, VOCABULARY), _labels(), 0, VOCABULARY),
    "loss of a padded shard": lambda k, x: k.cross_entropy(x(TOKENS, VOCABULARY), _labels(), VOCABULARY, 47),
    "loss of padding alone": lambda k, x: k.cross_entropy(x(TOKENS, VOCABULARY), _labels(), 2 * VOCABULARY, 0),
    "loss backward": lambda k, x: (
        k.cross_entropy_backward(
            x(TOKENS, VOCABULARY), _labels(), 4 + torch.rand(TOKENS, device=DEVICE), torch.rand(TOKENS, device=DEVICE),
            VOCABULARY, 47,
        ),
    ),
    "AdamW": lambda k, x: _updated(k, x, 1.0),
    "AdamW, left out": lambda k, x: _updated(k, x, 0.0),
    "rows": lambda k, x: _added(k, 5, x),
    "rows, one far more often": lambda k, x: _added(k, 1, x),
}  # fmt: skip


def _bound(name: str, dtype: torch.dtype) -> float:
    """How far a kernel may be from plain torch, relative to the whole result."""
    if "float8" in name:  # Triton's interpreter rounds otherwise (findings/triton_interpreter_casts.sh)
        return 1e-2 if ON_GPU else 8e-2
    return 1e-6 if dtype is torch.float32 else 1e-2


def _apart(found: torch.Tensor, right: torch.Tensor) -> float:
    """Norm of the difference over that of the result, where it is finite."""
    finite = torch.isfinite(right)
    return float((found.double() - right.double())[finite].norm() / right.double()[finite].norm().clamp(min=1e-9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PIECES)
def test_a_kernel_computes_what_plain_torch_does(name: str, dtype: torch.dtype, triton_kernels: ModuleType) -> None:
    """Every result, to rounding; where one is not finite, so is the other."""

    def results(kernels: ModuleType) -> Tensors:
        torch.manual_seed(1)
        return PIECES[name](kernels, lambda *shape: torch.randn(*shape).to(DEVICE, dtype))

    for found, right in zip(results(triton_kernels), results(plain), strict=True):
        assert found.shape == right.shape
        assert found.dtype is right.dtype
        assert torch.equal(torch.isfinite(found), torch.isfinite(right))
        assert _apart(found, right) < _bound(name, dtype), name


@pytest.mark.slow
def test_every_kernel_compiles_for_a_hopper_gpu(tmp_path: Path) -> None:
    """By Triton's compiler, which needs no GPU and refuses what the interpreter takes."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiled"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert {"_add_rms_norm", "_norm_heads_backward", "_swiglu", "_cross_entropy", "_adamw"} <= set(done.stdout.split())


@pytest.mark.parametrize("name", PIECES)
def test_a_matrix_that_lies_otherwise_is_refused_or_right(name: str, triton_kernels: ModuleType) -> None:
    """Columns side by side in place of rows: never read as if they were rows."""

    def draw(*shape: int) -> torch.Tensor:
        x = torch.randn(*shape).to(DEVICE)
        return x.t().contiguous().t() if x.dim() == 2 else x

    def results(kernels: ModuleType) -> Tensors:
        torch.manual_seed(1)
        return PIECES[name](kernels, draw)

    try:
        found = results(triton_kernels)
    except ValueError as refusal:
        assert "takes contiguous tensors" in str(refusal)
        return
    for one, right in zip(found, results(plain), strict=True):
        assert _apart(one, right) < _bound(name, torch.float32)


def test_float8_rounds_as_torchao_does() -> None:
    """Values and scales against torchao's own, rounded to powers of two, over rows of very different sizes."""
    torchao = pytest.importorskip("torchao.float8.float8_utils")
    x = _draw(TOKENS, HIDDEN) * 10.0 ** torch.arange(-TOKENS // 2, TOKENS // 2)[:, None]
    found = float8.narrowed(x)
    axiswise = pytest.importorskip("torchao.float8.config").ScalingGranularity.AXISWISE
    largest = torchao.tensor_to_amax(x, scaling_granularity=axiswise, axiswise_dim=-1)
    right = 1 / torchao.amax_to_scale(largest, float8.FORMAT, round_scales_to_power_of_2=True)
    assert torch.equal(found.scales[:, None], right)
    assert torch.equal(found.values.float(), (x / right).to(float8.FORMAT).float())


def test_a_row_and_a_column_in_float8_stand_for_the_same_numbers() -> None:
    """Powers of two as scales: the backward pass multiplies by the weights that the forward pass multiplied by."""
    weight = _draw(FFN, HIDDEN)
    rows, columns = plain.float8_rows(weight), plain.float8_columns(weight)
    smallest = 2.0**-6 * torch.maximum(rows.scales[:, None], columns.scales)  # that has all three bits
    normal = weight.abs() >= smallest
    assert normal.float().mean() > 0.99
    assert torch.equal(float8.widened(rows)[normal], float8.widened(columns).t()[normal])
    assert ((float8.widened(rows) - weight).abs() <= weight.abs() / 16)[normal].all()  # half a step of three bits


def _close(found: torch.Tensor, right: torch.Tensor | None) -> None:
    assert right is not None
    torch.testing.assert_close(found.double(), right.double(), rtol=1e-5, atol=1e-5)


def test_plain_norm_is_that_of_torch() -> None:
    """`torch.nn.functional.rms_norm` and its gradients by autograd, float64; with one addend each, and with two."""
    x, delta, second, other = (_draw(TOKENS, HIDDEN).double().requires_grad_() for _ in range(4))
    weight = _draw(HIDDEN).double().requires_grad_()
    total = x + delta + second
    right = torch.nn.functional.rms_norm(total, (HIDDEN,), weight, 1e-5)
    gradient = _draw(TOKENS, HIDDEN).double()
    (right * gradient + total * other).sum().backward()
    single = [t.detach().float() for t in (x, delta, second, weight, gradient, other)]
    for deltas in ((single[1], single[2]), (single[1] + single[2],)):
        kept, normed, scale = plain.add_rms_norm(single[0], deltas, single[3], 1e-5)
        for gradients in ((single[4],), (single[4] / 4, 3 * single[4] / 4)):
            grad_x, again, grad_weight = plain.rms_norm_backward(gradients, kept, scale, single[3], single[5])
            for found, expected in ((normed, right), (again, right), (grad_x, x.grad), (grad_weight, weight.grad)):
                _close(found, expected)


def test_plain_norm_of_heads_is_that_of_torch() -> None:
    """`torch.nn.functional.rms_norm` of queries and keys one by one, and its gradients by autograd, float64."""
    qkv = _packed(_draw).double().requires_grad_()
    weights = [_draw(WIDTH).double().requires_grad_() for _ in range(2)]
    heads = qkv.view(BATCH, -1, GROUPS, HEADS // GROUPS + 2, WIDTH)
    query, key = (
        torch.nn.functional.rms_norm(part, (WIDTH,), weight, 1e-5)
        for part, weight in zip((heads[..., :-2, :], heads[..., -2:-1, :]), weights, strict=True)
    )
    right = torch.cat([query, key, heads[..., -1:, :]], dim=3).flatten(2)
    gradient = _draw(*right.shape).double()
    right.backward(gradient)
    single = [t.detach().float() for t in (qkv, *weights)]
    normed, scale = plain.norm_heads(*single, GROUPS, 1e-5)
    _close(normed, right)
    found = plain.norm_heads_backward(gradient.float(), single[0], scale, *single[1:], GROUPS)
    for each, expected in zip(found, (qkv, *weights), strict=True):
        _close(each, expected.grad)


def test_plain_rotation_and_swiglu_are_those_of_others() -> None:
    """The rotation of transformers and torch's silu(gate) up, and their gradients by autograd, float64."""
    qkv = _draw(BATCH, TOKENS // BATCH, (HEADS + 2 * GROUPS) * WIDTH).double().requires_grad_()
    cos, sin = (table.cpu() for table in _tables(TOKENS // BATCH))
    heads = qkv.view(BATCH, -1, GROUPS, HEADS // GROUPS + 2, WIDTH)

    def turned(x: torch.Tensor) -> torch.Tensor:
        c, s = (torch.cat([table, table], dim=-1).double()[None, :, None] for table in (cos, sin))
        one, other = x.chunk(2, dim=-1)
        return x * c + torch.cat([-other, one], dim=-1) * s  # transformers' rotate_half

    right = (turned(heads[..., :-2, :].flatten(2, 3)), turned(heads[..., -2, :]), heads[..., -1, :])
    gradients = [_draw(*x.shape).double() for x in right]
    torch.autograd.backward(right, gradients)
    for found, expected in zip(plain.split_rotate(qkv.detach().float(), cos, sin, GROUPS), right, strict=True):
        _close(found, expected)
    _close(plain.split_rotate_backward(*(g.float() for g in gradients), cos, sin), qkv.grad)

    gate_up = _draw(TOKENS, 2 * FFN).double().requires_grad_()
    gate, up = gate_up.chunk(2, dim=-1)
    output, gradient = torch.nn.functional.silu(gate) * up, _draw(TOKENS, FFN).double()
    output.backward(gradient)
    _close(plain.swiglu(gate_up.detach().float()), output)
    grad_gate_up, again, _ = plain.swiglu_backward(gradient.float(), gate_up.detach().float())
    _close(grad_gate_up, gate_up.grad)
    _close(again, output)


def test_plain_loss_is_that_of_torch() -> None:
    """`torch.nn.functional.cross_entropy` over the real columns of two shards put together, and its gradient."""
    shards = [_draw(TOKENS, VOCABULARY) for _ in range(2)]
    real = (VOCABULARY, VOCABULARY - 3)
    labels = torch.randint(0, sum(real), (TOKENS,))
    whole = torch.cat([s[:, :columns] for s, columns in zip(shards, real, strict=True)], dim=1).double()
    whole.requires_grad_()
    right = torch.nn.functional.cross_entropy(whole, labels, reduction="none")
    gradient = torch.rand(TOKENS)
    right.backward(gradient.double())
    places = list(zip(shards, (0, VOCABULARY), real, strict=True))
    parts = [plain.cross_entropy(shard, labels, first, columns) for shard, first, columns in places]
    log_sum = torch.logsumexp(torch.stack([part[0] for part in parts]), dim=0)
    _close(log_sum - sum(part[1] for part in parts), right)
    back = [plain.cross_entropy_backward(s, labels, log_sum, gradient, f, c)[:, :c] for s, f, c in places]
    _close(torch.cat(back, dim=1), whole.grad)
