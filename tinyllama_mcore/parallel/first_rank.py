"""What the first rank does for the whole job, and what becomes of the others where it may not.

A refusal that only one rank knows would leave the others waiting for it. Users: the lock on `--save`, the loggers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from tinyllama_mcore.config.errors import ConfigError

T = TypeVar("T")


def on_first_rank(action: Callable[[], T]) -> T | None:
    """What `action` returns on the first rank, which calls it; None on the others. Collective, over gloo.

    Raises:
        ConfigError: on every rank alike, where `action` raised one.
    """
    done: T | None = None
    refusal: list[str | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            done = action()
        except ConfigError as mistake:
            refusal = [str(mistake)]
    refused = torch.tensor([float(refusal[0] is not None)])
    torch.distributed.all_reduce(refused, torch.distributed.ReduceOp.MAX)
    if refused:
        torch.distributed.broadcast_object_list(refusal, src=0)
        raise ConfigError(str(refusal[0]))
    return done
