"""What holds for every form of `ShardedState`, by itself and against torch's AdamW over whole tensors."""

from __future__ import annotations

import math

import torch

from tests.engine.small import SCALES, Small, build
from tinyllama_mcore.config.schema import RunConfig

UPDATES, LR = 5, 1e-2


def reads_what_was_written(run: RunConfig) -> None:
    """Bit for bit, in the model's order; the forward pass has the weights rounded; what is not given is zero."""
    small = build(run)
    small.engine.load_state(lambda kind, name: small.lookup(kind, name) if kind == "model" else None, 0)
    assert not any(tensor.any() for (kind, _), tensor in small.state().items() if kind != "model")
    small.engine.load_state(small.lookup, UPDATES)
    for kind in SCALES:
        read = dict(small.engine.state(kind))
        assert list(read) == list(small.shapes)
        for name, tensor in read.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, small.lookup(kind, name)), f"{kind} {name}"
    dtype = torch.bfloat16 if run.sharding.precision == "bf16" else torch.float32
    used = set()
    for name, tensor in small.engine.forward_weights():
        used.add(name)
        assert torch.equal(tensor, small.lookup("model", name).to(dtype)), f"{name} of the forward pass"
    assert used == set(small.shapes)


def updates_what_was_written(run: RunConfig) -> None:
    """The next update is that of torch's AdamW with the same weights, moments and number of updates."""
    small = build(run)
    small.engine.load_state(small.lookup, UPDATES)
    assert not small.engine.train_step(small.batches(), LR, math.inf).skipped
    after = small.state()
    _forgets_moments(small)
    for name in small.shapes:
        expected = _by_torch(small, name, after["exp_avg", name])
        for kind, tensor in expected.items():
            torch.testing.assert_close(after[kind, name], tensor, rtol=1e-4, atol=1e-3 * SCALES[kind], msg=f"{name}")


def _forgets_moments(small: Small) -> None:
    """Weights only, into an engine that has trained (a rollback to what was imported): no moment of before stays."""
    small.engine.load_state(lambda kind, name: small.lookup(kind, name) if kind == "model" else None, 0)
    for (kind, name), tensor in small.state().items():
        expected = small.lookup(kind, name) if kind == "model" else torch.zeros(small.shapes[name])
        assert torch.equal(tensor, expected), f"{kind} {name}"


def _by_torch(small: Small, name: str, exp_avg: torch.Tensor) -> dict[str, torch.Tensor]:
    """The update whose first moment becomes `exp_avg`: that tells the gradient."""
    config = small.run.optimizer
    before = {kind: small.lookup(kind, name) for kind in SCALES}
    weight = torch.nn.Parameter(before["model"].clone())
    weight.grad = ((exp_avg.double() - config.adam_beta1 * before["exp_avg"]) / (1 - config.adam_beta1)).float()
    adam = torch.optim.AdamW(
        [weight],
        lr=LR,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        weight_decay=config.weight_decay if config.weight_decay_on == "all" or weight.dim() > 1 else 0.0,
    )
    moments = {kind: before[kind].clone() for kind in ("exp_avg", "exp_avg_sq")}
    adam.state[weight] = {"step": torch.tensor(float(UPDATES)), **moments}
    adam.step()
    return {"model": weight.detach(), "exp_avg_sq": moments["exp_avg_sq"]}
