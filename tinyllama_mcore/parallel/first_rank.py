"""What the first rank does for the whole job, and what becomes of the others where it may not.

A refusal that only one rank knows would leave the others waiting for it. Users: the lock on `--save`, checkpoints that
are set aside, the indices of samples, the loggers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from tinyllama_mcore.config.errors import ConfigError

T = TypeVar("T")


def on_first_rank(
    action: Callable[[], T],
    failure: type[Exception] = ConfigError,
    group: torch.distributed.ProcessGroup | None = None,
) -> T | None:
    """What `action` returns on the first rank, which calls it; None on the others. Collective, over gloo.

    Args:
        action: what only the first rank does.
        failure: what `action` raises where it fails, with a message.
        group: all ranks, where the others have to wait longer than the job's own group lets them.

    Raises:
        failure: on every rank alike, where `action` raised one.
    """
    done: T | None = None
    refusal: list[str | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            done = action()
        except failure as error:
            refusal = [str(error)]
    refused = torch.tensor([float(refusal[0] is not None)])
    torch.distributed.all_reduce(refused, torch.distributed.ReduceOp.MAX, group=group)
    if refused:
        torch.distributed.broadcast_object_list(refusal, src=0, group=group)
        raise failure(str(refusal[0]))
    return done
