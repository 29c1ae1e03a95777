"""What an engine and its callers hand each other: the result of an iteration, and state by kind and name.

State goes in and out one logical kind and one parameter at a time, whole along the shard axis and cut along the tensor
axis, in fp32: that is all a layout-free checkpoint needs, whichever library holds the tensors. Neighbour: `base` is the
engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from tinyllama_mcore.optim.groups import MOMENTS

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
    grad_norm_by_group: Mapping[str, float] | None = None
    """The same norm of each part of the model (`group_norms`), where it was asked for and the update was made."""

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
"""(kind, module parameter name) -> the tensor-parallel shard, fp32; None: the moment is zero. Collective."""
