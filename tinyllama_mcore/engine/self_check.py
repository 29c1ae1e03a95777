"""An engine reads back what it was given: weights that a library put elsewhere end the run before it trains.

After each `load_state` three things have to be equal on every rank, to the bit: what was put in, what `state` reads
back, and what the forward pass uses, which for bf16 is what was put in, rounded. The last one matters most: where a
library keeps a wrong table of places, it writes and reads by the same table, and only the forward pass sees the harm
(`round_robin_gradients` of DeepSpeed 0.19.8). Costs one 64-bit checksum a tensor, computed where the tensor is
(`kernels.checksum`).

Neighbour: `engine.load_state` (engine/base.py) calls `check`. tests/distributed/test_self_check.py plants the faults.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from tinyllama_mcore.config.errors import RunFailed
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.engine.protocol import STATE_KINDS, StateLookup
from tinyllama_mcore.kernels.checksum import checksum

MOST_TOLD = 3
"""Tensors of each rank that the message names."""


class StateFault(RunFailed):
    """An engine does not hold what it was given. Raised on every rank alike."""


class CheckedEngine(Protocol):
    """What can be checked: a `ShardingEngine` that also shows what its forward pass uses."""

    def state(self, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
        """See `ShardingEngine.state`."""

    def forward_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `ShardedState.forward_weights`."""

    def describe(self) -> str:
        """See `ShardingEngine.describe`."""


class Given:
    """A lookup that keeps the checksum of everything it hands over."""

    def __init__(
        self, lookup: StateLookup, device: torch.device, rounded: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> None:
        """`rounded`: a weight as the forward pass uses it; None: as it is given."""
        self._lookup, self.device, self._rounded = lookup, device, rounded
        self.sums: dict[tuple[str, str], torch.Tensor] = {}
        """Checksum of everything, by kind and name."""
        self.forward: dict[str, torch.Tensor] = {}
        """Checksum of each weight as the forward pass has to use it."""
        self.seconds = 0.0
        """Time of the host that the checksums took."""
        checksum(torch.zeros(16, device=device))  # a GPU's first kernel starts Triton, which fused layers do anyway

    def __call__(self, kind: str, name: str) -> torch.Tensor | None:
        """See `StateLookup`. What it gives is on the device."""
        value = self._lookup(kind, name)
        if value is None:
            return None
        value = value.to(self.device)
        begin = time.perf_counter()  # a GPU computes them while the host makes the next value ready
        self.sums[kind, name] = checksum(value)
        if kind == "model":
            self.forward[name] = checksum(self._rounded(value)) if self._rounded else self.sums[kind, name]
        self.seconds += time.perf_counter() - begin
        return value


def check(engine: CheckedEngine, given: Given, run: RunConfig) -> float:
    """Compare what `engine` holds with what it was `given`; returns the seconds of both checksums. Collective.

    Raises:
        StateFault: on every rank, where any rank holds something else than it was given.
    """
    begin = _now(given.device)
    _agree(engine, _differences(engine, given), run.sharding.source)
    return given.seconds + _now(given.device) - begin


def _differences(engine: CheckedEngine, given: Given) -> list[str]:
    """What this rank holds that it was not given, in words. Collective."""
    told: list[str] = []
    expected: list[torch.Tensor] = []
    found: list[torch.Tensor] = []
    for kind in STATE_KINDS:
        if any(of == kind for of, _ in given.sums):
            for name, tensor in engine.state(kind):
                if (kind, name) in given.sums:
                    told.append(f"{name} ({kind} as it is read back)")
                    expected.append(given.sums[kind, name])
                    found.append(checksum(tensor))
    for name, tensor in engine.forward_weights():
        told.append(f"{name} (as the forward pass uses it)")
        expected.append(given.forward[name])
        found.append(checksum(tensor))
    wrong = (torch.stack(expected) != torch.stack(found)).tolist()  # the one wait for the device
    return [what for what, is_wrong in zip(told, wrong, strict=True) if is_wrong]


def _agree(engine: CheckedEngine, differences: list[str], source: str) -> None:
    """Raise on every rank where any rank found differences. Collective over all ranks."""
    found = torch.tensor(len(differences))  # on the CPU: NCCL would make a communicator of all ranks for this alone
    torch.distributed.all_reduce(found)
    if not int(found):
        return
    everywhere: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(everywhere, differences)
    raise StateFault(
        "the engine does not hold the weights that it was given, and the run stops before it trains on them: "
        f"{'; '.join(_told(rank, names) for rank, names in enumerate(everywhere) if names)}. It is "
        f"{engine.describe()}, set up by {source}: a key of that file, or this version of the "
        "library, puts weights where they are not expected. Take out the keys that none of the JSONs of "
        "tinyllama_mcore has"
    )


def _told(rank: int, names: list[str]) -> str:
    """The differences of one rank, the first ones by name."""
    more = f" and {len(names) - MOST_TOLD} more" if len(names) > MOST_TOLD else ""
    return f"rank {rank}: {', '.join(names[:MOST_TOLD])}{more}"


def _now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
