"""DeepSpeed behind `ShardingEngine`: ZeRO stages 0 to 3, with and without offload, one engine over all model chunks.

How each stage is wired to Megatron's schedule was measured: a wrong choice trains on with a wrong gradient. The guards
are tests/distributed/test_curves.py (first-step gradient norm, 20-iteration curve, equality of replicas).
Neighbour: `zero1` is ZeRO-1 as GPUs run it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.zero import stage3, stage_1_and_2

from tinyllama_mcore.config import engines
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.engine import schedule
from tinyllama_mcore.engine.base import ShardingEngine
from tinyllama_mcore.engine.deepspeed_config import deepspeed_config
from tinyllama_mcore.engine.protocol import StateLookup, StepResult, is_accepted, step_result
from tinyllama_mcore.engine.state import ShardedState
from tinyllama_mcore.engine.zero_state import STAGE_STATES
from tinyllama_mcore.model.gpt import ModelChunks
from tinyllama_mcore.model.products import keep_in_float8
from tinyllama_mcore.optim.clip import clip_by_global_norm
from tinyllama_mcore.optim.groups import adamw
from tinyllama_mcore.parallel.mesh import DeepSpeedMpu, Mesh
from tinyllama_mcore.sampling.loader import TokenBatch

# Which forward the schedule calls. Stages 2 and 3 reduce and gather by hooks that only the engine's own forward sets
# up; stages 0 and 1 reduce at the boundary, and stage 0 refuses a backward that it did not start itself.
_CALLS_THE_ENGINE = {0: False, 1: False, 2: True, 3: True}


class DeepSpeedEngine(ShardingEngine):
    """One DeepSpeed engine over this rank's model."""

    def __init__(self, run: RunConfig, mesh: Mesh, model: ModelChunks) -> None:
        """Take `model` (weights not set) over; collective. `load_state` must come before the first step."""
        _skip_inference_kernels()
        self._run, self._mesh, self._model = run, mesh, model
        self._stage = stage = engines.stage(run)
        self._adam = adamw(model.named_tensors(), run.optimizer)
        if stage == 3:  # gather and release a layer at once: a dozen modules fewer to hook into
            deepspeed.utils.set_z3_leaf_modules(model, list({type(layer) for layer in model.layers()}))
        self._engine, optimizer, *_ = deepspeed.initialize(
            model=model,
            optimizer=self._adam,
            mpu=DeepSpeedMpu(mesh),
            config=deepspeed_config(run),
            dist_init_required=False,
        )
        assert isinstance(optimizer, bf16_optimizer.BF16_Optimizer) == engines.has_flat_gradients(run)
        self._forward = self._engine if _CALLS_THE_ENGINE[stage] else model
        self._evaluated = self._engine
        self._state = self._take_over(optimizer)
        self._norm: torch.Tensor | None = None
        self._refused = False
        self._accumulates = engines.adds_in_the_product(run)
        if self._accumulates:
            _share_gradients(optimizer)
        if stage == 0:
            self._adam.register_step_pre_hook(self._clip)
        self._watch_norms(counts=stage > 0 or mesh.shard.rank == 0)

    def _take_over(self, optimizer: Any) -> ShardedState:  # noqa: ANN401
        """Weights and moments, which DeepSpeed's `optimizer` holds."""
        return STAGE_STATES[self._stage](self._model, self._adam, optimizer)

    def _clip(self, *_: object) -> None:
        """Stage 0: clip between DeepSpeed's all-reduce and AdamW's step, and keep the norm.

        An update with a norm that is not finite is skipped, as the other stages do by themselves; so is a refused loss.
        """
        self._norm = clip_by_global_norm(self._model.parameters(), self._run.optimizer.clip_grad, self._mesh)
        if self._refused or not torch.isfinite(self._norm):
            self._adam.zero_grad(set_to_none=True)

    def _passes(self, batches: Sequence[TokenBatch]) -> torch.Tensor:
        """By the schedule."""
        expect = self._expect_backward if self._forward is self._engine else None
        return schedule.train(self._model, self._forward, batches, self._mesh, before_backward=expect)

    def _update(self, loss: torch.Tensor, largest_loss: float) -> StepResult:
        """As DeepSpeed makes it, or what is left of it where the loss forbids one."""
        self._tell_of_gradients()
        mean = float(loss)
        self._refused = not is_accepted(mean, largest_loss)
        with _no_norm_is_good() if self._refused else contextlib.nullcontext():
            self._engine.step()
        self._keep_in_float8()
        norm = self._norm if self._norm is not None else self._engine.get_global_grad_norm()
        result = step_result(mean, math.nan if self._refused else float(norm), largest_loss)
        if self._stage > 0 and self._engine.was_step_applied() == result.skipped:  # stage 0 always steps: see _clip
            did, due = ("made", "skip") if result.skipped else ("skipped", "make")
            what = f"DeepSpeed {deepspeed.__version__} {did} an update that it had to {due}"
            raise RuntimeError(f"internal error: {what} (loss {mean}, gradient norm {norm})")
        return result

    def _tell_of_gradients(self) -> None:
        """Those of layers that add them up themselves: DeepSpeed counts what its own hooks saw, and forgets it."""
        if self._accumulates:
            optimizer = self._engine.optimizer
            optimizer.fp32_groups_has_gradients = [[True] * len(group) for group in optimizer.bf16_groups]

    def _keep_in_float8(self) -> None:
        """Where weights stay in their place, make them in float8 once an update and not at every use."""
        if self._accumulates:
            keep_in_float8(self._model.float8_weights(), self._mesh.device)

    def _expect_backward(self) -> None:
        """Let DeepSpeed finish every backward pass, not only the first after a forward pass.

        ZeRO-2 and 3 queue what ends a backward pass once a forward pass; 1F1B ends in a row of backward passes, and the
        gradients of all but one would be lost or counted as computed twice (DeepSpeed 0.19.8).
        """
        self._engine.optimizer.clear_backward_seen_flag()

    @torch.no_grad()
    def load_state(self, lookup: StateLookup, updates: int) -> None:
        """See `ShardingEngine.load_state`."""
        super().load_state(lookup, updates)
        self._keep_in_float8()

    def describe(self) -> str:
        """See `ShardingEngine.describe`."""
        optimizer = type(self._engine.optimizer).__name__
        called = "engine" if self._forward is self._engine else "module"
        return (
            f"DeepSpeed {deepspeed.__version__} ZeRO-{self._stage} ({optimizer}), "
            f"schedule calls the {called}, AdamW fused"
        )


@contextlib.contextmanager
def _no_norm_is_good() -> Iterator[None]:
    """DeepSpeed's stages 1 to 3 take every gradient norm for one that is not finite: how they skip an update.

    Each then lets go of its own gradient buffers, on every rank alike (DeepSpeed 0.19.8), and says so by
    `was_step_applied`. tests/distributed/test_bad_steps.py shows it.
    """
    users = (bf16_optimizer, stage_1_and_2, stage3)
    originals = [module.is_invalid_grad_norm for module in users]
    for module in users:
        module.is_invalid_grad_norm = lambda _: True
    try:
        yield
    finally:
        for module, original in zip(users, originals, strict=True):
            module.is_invalid_grad_norm = original


def _share_gradients(optimizer: Any) -> None:  # noqa: ANN401  a BF16_Optimizer
    """Give each parameter its place in the flat fp32 buffers as `main_grad`, where layers add to it."""
    for parameters, gradients in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.main_grad = gradient.view(parameter.shape)  # Megatron's name


def _skip_inference_kernels() -> None:
    """Do not compile `deepspeed_shm_comm` at the first start on a CPU: 50 s for inference only (DeepSpeed 0.19.8)."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
