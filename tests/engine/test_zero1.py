"""ZeRO-1's step of our own, over DeepSpeed's buffers in one process, with the plain kernels that a CPU has."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from tests.distributed.layouts import Mode
from tests.engine import small
from tinyllama_mcore.config.schema import RunConfig

LR = 1e-2


def _adopted(run: RunConfig) -> tuple:
    """The step, its AdamW and the model, whose parameters have their `main_grad`."""
    import deepspeed

    from tinyllama_mcore.engine import deepspeed_engine
    from tinyllama_mcore.engine.zero1 import DeviceStep
    from tinyllama_mcore.model import gpt
    from tinyllama_mcore.optim.groups import adamw, create_moments
    from tinyllama_mcore.parallel import launch, mesh

    deepspeed_engine._skip_inference_kernels()
    launch.start_process_group(launch.this_process())
    axes = mesh.build(run.layout, run.seed)
    model = gpt.build(run, axes)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=draw))
    adam = adamw(model.named_tensors(), run.optimizer)
    for group in adam.param_groups:
        group["lr"] = LR
    config, mpu = deepspeed_engine.deepspeed_config(run), mesh.DeepSpeedMpu(axes)
    _, optimizer, *_ = deepspeed.initialize(
        model=model, optimizer=adam, mpu=mpu, config=config, dist_init_required=False
    )
    deepspeed_engine._share_gradients(optimizer)
    step = DeviceStep.adopt(optimizer, adam, axes)
    create_moments(adam, step.fp32_groups_flat_partition)  # as the engine does before it loads
    return step, adam, model


def _gradients(parameters: list[torch.nn.Parameter], seed: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(parameter.shape, generator=draw) for parameter in parameters]


def _updates_as_torch_does(run: RunConfig) -> None:
    step, _, model = _adopted(run)
    parameters, config = list(model.parameters()), run.optimizer
    plain = [torch.nn.Parameter(parameter.detach().float()) for parameter in parameters]
    decays = [config.weight_decay_on == "all" or parameter.dim() > 1 for parameter in plain]
    groups = [
        {
            "params": [parameter for parameter, decayed in zip(plain, decays, strict=True) if decayed == which],
            "weight_decay": config.weight_decay if which else 0.0,
        }
        for which in (True, False)
    ]
    reference = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=LR,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
    )
    for seed, scale in enumerate((1.0, 1e-3, 1.0)):  # AdamW alone does not see a scale that stays: one is not clipped
        gradients = [scale * gradient for gradient in _gradients(parameters, seed)]
        for own, other, gradient in zip(parameters, plain, gradients, strict=True):
            own.main_grad.add_(gradient).add_(scale * 2.0**-12)  # what a buffer in bf16 would lose
            other.grad = gradient + scale * 2.0**-12
        norm = torch.nn.utils.clip_grad_norm_(plain, config.clip_grad)
        reference.step()
        step.expect(torch.ones(()), math.inf)
        step.step()
        torch.testing.assert_close(step._global_grad_norm, norm, rtol=1e-5, atol=0.0)
        for own, other in zip(parameters, plain, strict=True):
            assert not own.main_grad.any()
            torch.testing.assert_close(own.float(), other.detach().bfloat16().float(), rtol=2**-7, atol=1e-6)


def _leaves_out_what_it_must(run: RunConfig) -> None:
    step, adam, model = _adopted(run)
    parameters = list(model.parameters())

    def held() -> list[torch.Tensor]:
        step.join_masters()
        tensors = [tensor for state in adam.state.values() for tensor in state.values()]
        return [t.detach().clone() for t in (*parameters, *step.fp32_groups_flat_partition, *tensors)]

    for own, gradient in zip(parameters, _gradients(parameters, 0), strict=True):
        own.main_grad.add_(gradient)
    step.expect(torch.ones(()), 1.0)
    step.step()
    before = held()
    for refused, fault in ((True, 1.0), (False, torch.inf), (False, torch.nan), (True, torch.nan)):
        for own in parameters:
            own.main_grad.fill_(1.0)
        parameters[-1].main_grad.flatten()[0] = fault
        step.expect(torch.full((), 1.5 if refused else 1.0), 1.0)
        step.step()
        torch.testing.assert_close(step.reading.wait()[1], float(step._global_grad_norm), equal_nan=True)
        assert all(torch.equal(now, then) for now, then in zip(held(), before, strict=True)), (refused, fault)
        assert not any(own.main_grad.any() for own in parameters)
    step.expect(torch.ones(()), 1.0)
    parameters[0].main_grad.fill_(1.0)
    step.step()
    assert not torch.equal(held()[0], before[0])


def _tells_norms_by_group(run: RunConfig) -> None:
    from tinyllama_mcore.engine.group_norms import GroupNorms
    from tinyllama_mcore.engine.zero1 import Zero1State

    step, adam, model = _adopted(run)
    norms = GroupNorms(run.model, model, Zero1State(model, adam, step), step._mesh, counts=True)
    step.before_update = norms.add
    named = list(model.named_tensors())
    expected: dict[str, float] = defaultdict(float)
    for (name, parameter), gradient in zip(named, _gradients([p for _, p in named], 0), strict=True):
        parameter.main_grad.add_(gradient)
        part = next(part for start, part in PARTS.items() if start in name)
        expected[part] += float(gradient.double().square().sum())
    norms.begin()
    step.expect(torch.ones(()), math.inf)
    step.step()
    found: dict[str, float] = defaultdict(float)
    for group, norm in norms.end(1 / step._mesh.shard.size).items():
        found[group.rpartition(".")[2]] += norm**2
    assert found == pytest.approx(expected, rel=1e-5)
    assert sum(found.values()) > run.optimizer.clip_grad**2, "what is told is not clipped"


PARTS = {
    "word_embeddings": "embedding",
    "final_layernorm": "final_norm",
    "layernorm": "norms",
    "self_attention": "attention",
    "mlp": "mlp",
    "output_layer": "head",
}
"""What a module's name holds -> its group, without the layer."""
MODE = Mode(sharding="zero1", dp=1, precision="bf16")


def test_an_update_is_torchs_over_sums_in_fp32(tmp_path: Path) -> None:
    """Norm before clipping, clipped AdamW with and without decay, bf16 weights that are its fp32 ones rounded."""
    small.hold(_updates_as_torch_does, MODE, tmp_path)


def test_a_bad_update_changes_nothing(tmp_path: Path) -> None:
    """Refused by its loss or with a gradient that is not finite: weights, moments and number of updates stay."""
    small.hold(_leaves_out_what_it_must, MODE, tmp_path)


def test_norms_by_group_are_those_of_its_buffers(tmp_path: Path) -> None:
    """Of the gradient before clipping, by parts that DeepSpeed's links find in the flat buffers."""
    small.hold(_tells_norms_by_group, MODE, tmp_path)
