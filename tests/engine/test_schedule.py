"""Megatron's schedules give what plain torch does over the same model: the mean loss, and the gradient of that mean."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch

from tests.conftest import VOCABULARY
from tests.distributed import ranks
from tests.distributed.layouts import Mode
from tests.engine import small
from tests.engine.small import run_of
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.sampling.loader import TokenBatch

COUNT = 4
"""Micro-batches: enough for every pipeline here."""
MODES = [
    Mode(sharding="zero0", dp=1),
    Mode(sharding="zero0", dp=2),
    Mode(sharding="zero0", pp=2, dp=1),
    Mode(sharding="zero0", pp=2, vpp=2, dp=1),
    Mode(sharding="zero0", cp=2, dp=1),
]


def _batches(run: RunConfig, data_rank: int) -> list[TokenBatch]:
    draw = torch.Generator().manual_seed(data_rank)
    tokens = torch.randint(0, VOCABULARY, (COUNT, 2, run.batch.seq_length + 1), generator=draw)
    return [TokenBatch(tokens=part[:, :-1], labels=part[:, 1:]) for part in tokens]


def _compare(run: RunConfig) -> None:
    """Both against Hugging Face's model with the same weights, on every rank."""
    from tests.distributed.reference import SEED, reference_model
    from tinyllama_mcore.config.parameters import logical_parameters
    from tinyllama_mcore.engine import schedule
    from tinyllama_mcore.hf import names
    from tinyllama_mcore.model import gpt
    from tinyllama_mcore.model.initialize import initial_shards
    from tinyllama_mcore.model.parameters import part_names
    from tinyllama_mcore.parallel import launch, mesh

    launch.start_process_group(launch.this_process())
    axes = mesh.build(run.layout, SEED)
    model = gpt.build(run, axes)
    start = initial_shards(run.model, axes.tensor, SEED)
    for name, parameter in model.named_tensors():
        parameter.data.copy_(start("model", name))
    theirs = reference_model(run.model)
    means = []
    for data_rank in range(axes.data.size):
        for batch in _batches(run, data_rank):
            logits = theirs(batch.tokens).logits.flatten(0, 1)
            each = torch.nn.functional.cross_entropy(logits, batch.labels.flatten(), reduction="none")
            means.append(each.view(batch.labels.shape).mean(dim=1))
    by_sequence = torch.stack(means).view(axes.data.size, COUNT, 2).transpose(0, 1).flatten()
    expected = by_sequence.mean()
    expected.backward()

    own, calls = _batches(run, axes.data.rank), []
    with torch.no_grad():
        losses = schedule.sequence_losses(model, model, own, axes)
    torch.testing.assert_close(losses, by_sequence.detach(), rtol=1e-5, atol=0.0)
    assert all(parameter.grad is None for parameter in model.parameters())

    model.train()
    loss = schedule.train(model, model, own, axes, before_backward=lambda: calls.append(1))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0.0)
    assert len(calls) == COUNT * len(model.chunks)
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    right = {}
    for parameter in logical_parameters(run.model):
        right[parameter.name] = names.from_hf(parameter.name, gradients.__getitem__, run.model)
    for name, parameter in model.named_tensors():
        gradient = parameter.grad.clone()
        torch.distributed.all_reduce(gradient, group=axes.shard.group)
        whole = torch.cat([right[part] for part in part_names(name)])
        torch.testing.assert_close(gradient / axes.shard.size, whole, rtol=1e-3, atol=2e-6, msg=name)

    tokens = own[0].tokens
    with torch.no_grad():
        torch.testing.assert_close(
            schedule.logits(model, model, tokens, axes), theirs(tokens).logits, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_losses_and_gradients_are_plain_torchs(mode: Mode, tmp_path: Path) -> None:
    """Evaluation leaves no gradient; the callback comes once a backward pass; logits are whole and in order."""
    codes = ranks.run(mode.world_size, _compare, run_of(mode, tmp_path), logs=tmp_path / "logs")
    assert codes == [0] * mode.world_size, ranks._tails(tmp_path / "logs")


def _one_ulp_apart(run: RunConfig) -> None:
    from tinyllama_mcore.engine import schedule
    from tinyllama_mcore.parallel import launch, mesh

    launch.start_process_group(launch.this_process())
    axes = mesh.build(run.layout, run.seed)
    mean = schedule.global_mean(torch.tensor(1 + axes.rank * 2.0**-23), axes)
    first_of_the_last_pipeline_rank = axes.tensor.size * (axes.pipeline.size - 1)
    assert mean.item() == 1 + first_of_the_last_pipeline_rank * 2.0**-23


def test_every_rank_decides_by_the_same_bits(tmp_path: Path) -> None:
    """Tensor-parallel ranks whose sums differ in the last bit, as NCCL's may: one of them has the word."""
    small.hold(_one_ulp_apart, Mode(sharding="zero0", tp=2, pp=2, dp=1), tmp_path)


def _bound_elsewhere(run: RunConfig) -> None:
    from tinyllama_mcore.engine import schedule
    from tinyllama_mcore.model import gpt
    from tinyllama_mcore.parallel import launch, mesh

    launch.start_process_group(launch.this_process())
    axes = mesh.build(run.layout, run.seed)
    model = gpt.build(run, axes)
    schedule._install_cpu_stand_in()
    theirs = schedule.get_forward_backward_func()
    own_names = types.FunctionType(theirs.__code__, dict(theirs.__globals__), None, theirs.__defaults__)
    own_names.__kwdefaults__ = theirs.__kwdefaults__
    schedule.get_forward_backward_func = lambda: own_names
    with pytest.raises(RuntimeError, match=f"0 of {COUNT} backward passes were seen"):
        schedule.train(model, model, _batches(run, 0), axes, before_backward=lambda: None)


def test_a_schedule_that_calls_its_backward_step_otherwise_is_told(tmp_path: Path) -> None:
    """A release of Megatron's that leaves the engine out of each backward pass does not train on."""
    small.hold(_bound_elsewhere, Mode(sharding="zero0", dp=1), tmp_path)
