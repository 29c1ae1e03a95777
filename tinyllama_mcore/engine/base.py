"""What both engines do alike: iterate, evaluate, and hand state over, once they know what computes and what is kept.

Neighbours: `protocol` is what callers see; `deepspeed_engine` and `fsdp_engine` add the two halves of a training step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.engine import schedule, self_check
from tinyllama_mcore.engine.protocol import STATE_KINDS, StateLookup, StepResult
from tinyllama_mcore.engine.replicas import spread
from tinyllama_mcore.engine.state import ShardedState
from tinyllama_mcore.model.gpt import ModelChunks
from tinyllama_mcore.parallel.mesh import Mesh
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


class BaseEngine(ABC):
    """A `ShardingEngine` but for `describe` and a library's own passes and update. See there for the methods."""

    check_seconds: float

    _run: RunConfig
    _mesh: Mesh
    _model: ModelChunks
    _adam: torch.optim.AdamW
    _state: ShardedState
    _evaluated: schedule.Forward
    """The forward pass without a backward pass: the model, or the library's wrapper around it."""
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
        """See `ShardingEngine.describe`."""

    def train_step(self, batches: Sequence[TokenBatch], lr: float, largest_loss: float) -> StepResult:
        """See `ShardingEngine.train_step`."""
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
        return self._update(loss, largest_loss)

    def _let_gradients_go(self) -> None:
        """Those of an iteration that was left in the middle, as a refused update does."""
        if self._has_gradients:
            self._update(torch.full((), math.nan, device=self._mesh.device), math.inf)
            self._has_gradients = False

    @torch.no_grad()
    def eval_step(self, batches: Sequence[TokenBatch]) -> torch.Tensor:
        """See `ShardingEngine.eval_step`."""
        self._model.eval()
        return schedule.sequence_losses(self._model, self._evaluated, batches, self._mesh).cpu()

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `ShardingEngine.logits`."""
        self._model.eval()
        with self._model.without_float8():
            return schedule.logits(self._model, self._evaluated, tokens, self._mesh)

    @torch.no_grad()
    def state(self, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
        """See `ShardingEngine.state`."""
        self._state.begin()
        for name, parameter in self._model.named_tensors():
            yield name, self._state.read(parameter, kind)

    def forward_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `ShardedState.forward_weights`."""
        return self._state.forward_weights()

    @torch.no_grad()
    def load_state(self, lookup: StateLookup, updates: int) -> None:
        """See `ShardingEngine.load_state`."""
        self._let_gradients_go()
        rounded = self._state.rounded if self._run.sharding.precision == "bf16" else None
        given = self_check.Given(lookup, self._mesh.device, rounded)
        self._state.begin()
        for kind in STATE_KINDS:
            for name, parameter in self._model.named_tensors():
                value = given(kind, name)
                if value is not None:
                    self._state.write(parameter, kind, value)
        self._state.commit(updates)
        ready = torch.zeros(1, device=self._mesh.device)  # the slowest rank, and NCCL's start, are not the check's time
        torch.distributed.all_reduce(ready, group=self._mesh.shard.group)
        self.check_seconds = self_check.check(self, given, self._run)

    @torch.no_grad()
    def replica_spread(self) -> float:
        """See `ShardingEngine.replica_spread`. Compares the weights that the forward pass uses."""
        return self._spread(self.forward_weights())

    def _spread(self, weights: Iterator[tuple[str, torch.Tensor]]) -> float:
        """The largest difference between two ranks' copies of these weights, each with its name."""
        cut = {
            name: parameter.tensor_model_parallel  # type: ignore[attr-defined]  # the mark of `model.gpt`
            for name, parameter in self._model.named_tensors()
        }
        return spread(((weight, cut[name]) for name, weight in weights), self._mesh)
