"""`ShardingEngine`: what the loop and the checkpoints ask of whatever shards the run, and what all engines do alike.

An engine owns the model's weights, gradients and optimizer state on this rank. Neighbours: `zero1`,
`deepspeed_engine` and `fsdp_engine` add the two halves of a training step; `protocol` has what goes in and out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.engine import schedule, self_check
from tinyllama_mcore.engine.group_norms import GroupNorms
from tinyllama_mcore.engine.protocol import STATE_KINDS, StateLookup, StepResult
from tinyllama_mcore.engine.state import ShardedState
from tinyllama_mcore.model.gpt import ModelChunks
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.parallel.own_time import OwnTime
from tinyllama_mcore.sampling.loader import TokenBatch


class _Watched(Sequence[TokenBatch]):
    """The micro-batches of an iteration, which know whether one has been through its passes."""

    def __init__(self, batches: Sequence[TokenBatch]) -> None:
        self._batches, self.past_one = batches, False

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401  a number or a slice
        return self._batches[place]

    def __iter__(self) -> Iterator[TokenBatch]:
        for batch in self._batches:
            yield batch
            self.past_one = True


class ShardingEngine(ABC):
    """Train, evaluate, and hand state over. Every method is collective over all ranks."""

    check_seconds: float
    """Seconds that `load_state` took to read back what it was given (`self_check`)."""

    _run: RunConfig
    _mesh: Mesh
    _model: ModelChunks
    _adam: torch.optim.AdamW
    _state: ShardedState
    _evaluated: schedule.Forward
    """The forward pass without a backward pass: the model, or the library's wrapper around it."""
    _group_norms: GroupNorms | None = None
    """Where the run asks for them."""
    _has_gradients = False
    """Gradients are there of an iteration that was left in the middle."""

    @abstractmethod
    def _passes(self, batches: Sequence[TokenBatch]) -> torch.Tensor:
        """Forward and backward of each micro-batch; returns the global batch's mean loss, a scalar."""

    @abstractmethod
    def _update(self, loss: torch.Tensor, largest_loss: float) -> StepResult:
        """Clip and update, unless loss or gradient norm forbid it, and let the gradients go."""

    @abstractmethod
    def describe(self) -> str:
        """The engine in one line, for the start-up print."""

    def train_step(
        self, batches: Sequence[TokenBatch], lr: float, largest_loss: float, *, by_group: bool = False
    ) -> StepResult:
        """One iteration: forward and backward of each micro-batch, clip, update with learning rate `lr`.

        `by_group` asks a run with `--log-grad-norm-by-group` for those norms too: one wait for the GPU more.

        The update is skipped, and weights and moments stay as they are, where the mean loss is above `largest_loss`
        or not finite, or the gradient norm is not finite. An exception that `batches` raises between micro-batches
        passes through, and the next iteration begins without its gradients.
        """
        self._let_gradients_go()
        self._model.train()
        for group in self._adam.param_groups:
            group["lr"] = lr
        watched = _Watched(batches)
        try:
            loss = self._passes(watched)
        except Exception:
            self._has_gradients = watched.past_one
            raise
        norms = self._group_norms if by_group else None
        if norms is None:
            return self._update(loss, largest_loss)
        norms.begin()
        result = self._update(loss, largest_loss)
        found = norms.end(self._taken_scale(result))
        return result if result.skipped else replace(result, grad_norm_by_group=found)

    def _watch_norms(self, *, counts: bool) -> None:
        """Where the run asks for norms by group, find them as AdamW steps; `counts`: see `GroupNorms`."""
        if self._run.loop.log_grad_norm_by_group:
            self._group_norms = GroupNorms(self._run.model, self._model, self._state, self._mesh, counts=counts)
            self._adam.register_step_pre_hook(self._group_norms.add)

    def _taken_scale(self, result: StepResult) -> float:
        """What makes the gradient of what AdamW took: it was clipped, by torch's factor, as all libraries do."""
        clip = self._run.optimizer.clip_grad
        return max(1.0, (result.grad_norm + 1e-6) / clip) if clip > 0 else 1.0

    def watch(self, own_time: OwnTime) -> None:
        """Measure this rank's own time in its passes."""
        self._model.watch(own_time)

    def _let_gradients_go(self) -> None:
        """Those of an iteration that was left in the middle, as a refused update does."""
        if self._has_gradients:
            self._update(torch.full((), math.nan, device=self._mesh.device), math.inf)
            self._has_gradients = False

    @torch.no_grad()
    def eval_step(self, batches: Sequence[TokenBatch]) -> torch.Tensor:
        """Mean loss in nats of each sequence of the global batch [batch], in the run's order; changes nothing."""
        self._model.eval()
        return schedule.sequence_losses(self._model, self._evaluated, batches, self._mesh).cpu()

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [b, s] (the same on every rank) -> logits [b, s, vocab_size], whole on every rank.

        Products are in the run's precision and never in float8: these logits are compared with those of an export.
        """
        self._model.eval()
        with self._model.without_float8():
            return schedule.logits(self._model, self._evaluated, tokens, self._mesh)

    @torch.no_grad()
    def state(self, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
        """(module parameter name, its tensor-parallel shard in fp32) for every parameter, in a fixed order."""
        self._state.begin()
        for name, parameter in self._model.named_tensors():
            yield name, self._state.read(parameter, kind)

    def forward_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `ShardedState.forward_weights`."""
        return self._state.forward_weights()

    @torch.no_grad()
    def load_state(self, lookup: StateLookup, updates: int) -> None:
        """Take every weight and moment from `lookup`; `updates` is how many the moments have behind them.

        Raises StateFault on every rank where any rank does not hold what it was given (`self_check`).
        """
        self._let_gradients_go()
        rounded = self._state.rounded if self._run.sharding.precision == "bf16" else None
        given = self_check.Given(lookup, self._mesh.device, rounded)
        self._state.begin()
        self._state.clear_moments()
        for kind in STATE_KINDS:
            for name, parameter in self._model.named_tensors():
                value = given(kind, name)
                if value is not None:
                    self._state.write(parameter, kind, value)
        self._state.commit(updates)
        ready = torch.zeros(1, device=self._mesh.device)  # the slowest rank, and NCCL's start, are not the check's time
        torch.distributed.all_reduce(ready, group=self._mesh.shard.group)
        self.check_seconds = self_check.check(self, given, self._run)
