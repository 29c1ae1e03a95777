"""`ShardingEngine`: what the loop and the checkpoints ask of whatever shards the run.

One engine owns the model's weights, gradients and optimizer state on this rank. State goes in and out one logical
kind and one parameter at a time, whole along the shard axis and cut along the tensor axis, in fp32: that is all a
layout-free checkpoint needs, whichever library holds the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tinyllama_mcore.optim.groups import MOMENTS
from tinyllama_mcore.sampling.loader import TokenBatch

STATE_KINDS = ("model", *MOMENTS)
"""fp32 master weights, and Adam's two moments."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one iteration did."""

    loss: float
    """Mean over every token of the global batch, in nats."""
    grad_norm: float
    """Global L2 norm before clipping; NaN where the loss was not accepted."""
    skip_reason: str | None
    """Why the update was skipped, in words; None where it was made."""

    @property
    def skipped(self) -> bool:
        """Whether the update was skipped."""
        return self.skip_reason is not None


def is_accepted(loss: float, largest_loss: float) -> bool:
    """Whether an update with this mean loss may be made."""
    return math.isfinite(loss) and loss <= largest_loss


def step_result(loss: float, grad_norm: float, largest_loss: float) -> StepResult:
    """The result of an iteration with this mean loss and gradient norm, which decide whether there was an update."""
    if not is_accepted(loss, largest_loss):
        what = f"above {largest_loss:.4f}" if math.isfinite(loss) else "not finite"
        return StepResult(loss=loss, grad_norm=math.nan, skip_reason=f"loss {loss:.4f} is {what}")
    problem = None if math.isfinite(grad_norm) else f"gradient norm {grad_norm} is not finite"
    return StepResult(loss=loss, grad_norm=grad_norm, skip_reason=problem)


StateLookup = Callable[[str, str], torch.Tensor | None]
"""(kind, module parameter name) -> the tensor-parallel shard, fp32; None leaves a moment at zero. Collective."""


class ShardingEngine(Protocol):
    """Train, evaluate, and hand state over. Every method is collective over all ranks."""

    check_seconds: float
    """Seconds that `load_state` took to read back what it was given (`self_check`)."""

    def train_step(self, batches: Sequence[TokenBatch], lr: float, largest_loss: float) -> StepResult:
        """One iteration: forward and backward of each micro-batch, clip, update with learning rate `lr`.

        The update is skipped, and weights and moments stay as they are, where the mean loss is above `largest_loss`
        or not finite, or the gradient norm is not finite. An exception that `batches` raises between micro-batches
        passes through, and the next iteration begins without its gradients.
        """

    def eval_step(self, batches: Sequence[TokenBatch]) -> torch.Tensor:
        """Mean loss in nats of each sequence of the global batch [batch], in the run's order; changes nothing."""

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [b, s] (the same on every rank) -> logits [b, s, vocab_size], whole on every rank.

        Products are in the run's precision and never in float8: these logits are compared with those of an export.
        """

    def state(self, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
        """(module parameter name, its tensor-parallel shard in fp32) for every parameter, in a fixed order."""

    def load_state(self, lookup: StateLookup, updates: int) -> None:
        """Take every weight and moment from `lookup`; `updates` is how many the moments have behind them.

        Raises StateFault on every rank where any rank does not hold what it was given (`self_check`).
        """

    def replica_spread(self) -> float:
        """Largest difference between two ranks' copies of one parameter, over the tensor and data axes: 0 if right."""

    def describe(self) -> str:
        """The engine in one line, for the start-up print."""
