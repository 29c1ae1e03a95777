"""One rank's share of the fp32 weights and of Adam's moments, read and written one whole parameter at a time.

Each library and each ZeRO stage keeps them elsewhere. `ShardedState` is what an engine asks for, and what all of them
share; its forms are `Stage0State`, `Stage12State`, `Stage3State` (zero_state.py), `Zero1State` (zero1.py) and
`FsdpState` (fsdp_state.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch

from tinyllama_mcore.model.gpt import ModelChunks
from tinyllama_mcore.optim.groups import MOMENTS, create_moments, set_updates


class ShardedState(ABC):
    """The state of one model under one AdamW. A `kind` is one of `STATE_KINDS`; "whole" is along the shard axis."""

    def __init__(self, model: ModelChunks, adam: torch.optim.AdamW) -> None:
        """`model` as the library left it, and the AdamW that the library drives."""
        self._model, self._adam = model, adam

    def begin(self) -> None:
        """Make the moments exist, at zero, and let go of gathered copies. Comes before `read` and `write`."""
        create_moments(self._adam, self._updated())

    def clear_moments(self) -> None:
        """Set every moment of this rank to zero, as before the first update: what is written next may hold none."""
        for tensor in self._updated():
            for moment in MOMENTS:
                self._adam.state[tensor][moment].zero_()

    @abstractmethod
    def read(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
        """The whole tensor, fp32. Collective over the shard axis."""

    @abstractmethod
    def write(self, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
        """Set this rank's part from the whole tensor `value`, which is on the rank's device."""

    @abstractmethod
    def gradient_part(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """This rank's part of a gradient that AdamW is about to take; None where it has none, or takes it not now."""

    def commit(self, updates: int) -> None:
        """Set how many updates the moments have behind them, and refresh what the forward pass uses."""
        set_updates(self._adam, updates)

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """A master weight, fp32, as a forward pass in bf16 uses it."""
        return weight.bfloat16()

    def forward_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole tensor) of every weight as the forward pass uses it. Collective over the shard axis.

        A tensor is good until the next one is asked for.
        """
        for name, parameter in self._model.named_tensors():
            yield name, parameter.detach()

    def _updated(self) -> Iterable[torch.Tensor]:
        """The tensors that AdamW updates: those of its parameter groups."""
        return (tensor for group in self._adam.param_groups for tensor in group["params"])
