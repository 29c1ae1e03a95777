"""Faults that a rank is started with: what breaks is real, only when it breaks is chosen."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tinyllama_mcore.checkpoint import manifest

SLOW_DATA = "slow-data"
"""Directory of a run whose slow rank is slow in its data."""
Iterations = frozenset[int]
"""Counted from 0."""


def _following(state_of: dict[str, Any]) -> None:
    """Keep the loop's state of each iteration where a fault can see it."""
    from tinyllama_mcore.training import loop

    step = loop.Loop._step

    def followed(self: loop.Loop) -> None:
        state_of["state"] = self.state
        step(self)

    loop.Loop._step = followed


def pretrain_with_bad_numbers(argv: list[str], victim: int, faults: Mapping[str, Iterations]) -> int:
    """Train; on rank `victim` losses ("loss") or gradients ("gradient") are NaN, and on all updates are "refused"."""
    import os

    from tinyllama_mcore.model.gpt import TinyLlama
    from tinyllama_mcore.pretrain import main
    from tinyllama_mcore.training import bad_steps

    now: dict[str, Any] = {}
    _following(now)
    forward, objection, largest_loss = TinyLlama.forward, bad_steps.objection, bad_steps.largest_loss

    def spoiled(self: TinyLlama, *args: object, **kwargs: object) -> torch.Tensor:
        output = forward(self, *args, **kwargs)
        iteration = now["state"].iteration
        if iteration in faults.get("loss", ()):
            return output * float("nan")
        if iteration in faults.get("gradient", ()) and output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))
        return output

    def refusing(state: manifest.RunState, loss: float, deviations: float) -> str | None:
        return "told to" if state.iteration in faults.get("refused", ()) else objection(state, loss, deviations)

    def lowest(state: manifest.RunState, deviations: float) -> float:
        return 0.0 if state.iteration in faults.get("refused", ()) else largest_loss(state, deviations)

    if int(os.environ["RANK"]) == victim:
        TinyLlama.forward = spoiled
    bad_steps.objection, bad_steps.largest_loss = refusing, lowest
    return main(argv)


def pretrain_slowly(argv: list[str], seconds: float) -> int:
    """Train; each micro-batch takes so long."""
    import time

    from tinyllama_mcore.model.gpt import TinyLlama
    from tinyllama_mcore.pretrain import main

    forward = TinyLlama.forward

    def slow(self: TinyLlama, *args: object, **kwargs: object) -> torch.Tensor:
        time.sleep(seconds)
        return forward(self, *args, **kwargs)

    TinyLlama.forward = slow
    return main(argv)


def pretrain_on_poison(argv: list[str], first: int, end: int) -> int:
    """Train; an iteration that begins at a sample from `first` to before `end` has a loss that is not a number."""
    from tinyllama_mcore.model.gpt import TinyLlama
    from tinyllama_mcore.pretrain import main

    now: dict[str, Any] = {}
    _following(now)
    forward = TinyLlama.forward

    def spoiled(self: TinyLlama, *args: object, **kwargs: object) -> torch.Tensor:
        poisoned = first <= now["state"].consumed_samples < end
        return forward(self, *args, **kwargs) * (float("nan") if poisoned else 1.0)

    TinyLlama.forward = spoiled
    return main(argv)


def pretrain_on_poison_and_leave(argv: list[str], first: int, end: int) -> int:
    """As `pretrain_on_poison`; the run is asked to leave as soon as it has rolled back."""
    import os
    import signal

    from tinyllama_mcore.training import loop

    roll_back = loop.Loop._roll_back

    def asked(self: loop.Loop) -> None:
        roll_back(self)
        os.kill(os.getpid(), signal.SIGTERM)

    loop.Loop._roll_back = asked
    return pretrain_on_poison(argv, first, end)


def pretrain_with_a_bad_cache(argv: list[str], slow: int, seconds: float, full: int) -> int:
    """Train; samples are prepared 2 iterations at a time, the `slow`-th index takes long and the `full`-th has no room.

    Both are counted from 0.
    """
    import errno
    import itertools
    import os
    import tempfile
    import time

    from tinyllama_mcore.pretrain import main
    from tinyllama_mcore.sampling import epochs, loader

    loader.PREPARED_AHEAD = 2
    mkdtemp, count = tempfile.mkdtemp, itertools.count()

    def made(prefix: str, **more: object) -> str:
        if ".partial-" not in prefix:
            return mkdtemp(prefix=prefix, **more)
        number = next(count)
        if number == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        time.sleep(seconds * (number == slow))
        return mkdtemp(prefix=prefix, **more)

    epochs.tempfile.mkdtemp = made
    return main(argv)


def pretrain_on_a_small_disk(argv: list[str], largest: int) -> int:
    """Train where no file can grow beyond `largest` bytes."""
    from tinyllama_mcore.pretrain import main

    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    return main(argv)


def pretrain_on_a_slow_disk(argv: list[str], seconds: float, file_bytes: int) -> int:
    """Train where each flush takes so many seconds, and checkpoints are files of so many bytes."""
    import time

    from tinyllama_mcore.checkpoint import store
    from tinyllama_mcore.pretrain import main

    store.flush = lambda paths: time.sleep(seconds)
    store.FILE_BYTES = file_bytes
    return main(argv)


def pretrain_on_a_broken_disk(argv: list[str], victim: int, after: int) -> int:
    """Train; from the `after`-th flush on, counted from 0, the disk of rank `victim` does not take what was written."""
    import errno
    import itertools
    import os

    from tinyllama_mcore.checkpoint import store
    from tinyllama_mcore.pretrain import main

    flush, count = store.flush, itertools.count()

    def failing(paths: Sequence[Path]) -> None:
        if int(os.environ["RANK"]) == victim and next(count) >= after:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(paths[0]))
        flush(paths)

    store.flush = failing
    return main(argv)


def train_on_a_slow_rank(runs: Sequence[tuple[str, list[str]]], done: Path, victim: int, seconds: float) -> int:
    """Train each run as `many` does; rank `victim` sleeps in each layer's forward pass, or before each batch.

    Where, the run's directory says: `SLOW_DATA`.
    """
    import os
    import time

    from tests.distributed import many
    from tinyllama_mcore import pretrain
    from tinyllama_mcore.model.fused_model import FusedDecoderLayer
    from tinyllama_mcore.sampling.loader import BatchSource

    layer, iterations, now = FusedDecoderLayer.forward, BatchSource.iterations, {"in": ""}

    def slow_layer(self: FusedDecoderLayer, *args: Any) -> Any:  # noqa: ANN401
        time.sleep(seconds * (now["in"] == "layers"))
        return layer(self, *args)

    def slow_data(self: BatchSource, *args: Any, **kwargs: Any) -> Iterator[Any]:  # noqa: ANN401
        for batch in iterations(self, *args, **kwargs):
            time.sleep(seconds * (now["in"] == "data"))
            yield batch

    def main(argv: list[str]) -> int:
        now["in"] = "data" if any(SLOW_DATA in word for word in argv) else "layers"
        return right(argv)

    if int(os.environ["RANK"]) == victim:
        FusedDecoderLayer.forward, BatchSource.iterations = slow_layer, slow_data
    right, pretrain.main = pretrain.main, main
    return many._train(runs, done)


def pretrain_in_a_hurry(argv: list[str]) -> int:
    """Train; waits a second for a `--save` that another job holds."""
    from tinyllama_mcore.checkpoint import lock
    from tinyllama_mcore.pretrain import main

    lock.PATIENCE_S = 1.0
    return main(argv)


def pretrain_that_fails_during_a_save(argv: list[str], victim: int, iteration: int, seconds: float) -> int:
    """Train; each rank's part of a checkpoint takes so long to write, and rank `victim` fails in an iteration."""
    import os
    import time

    from tinyllama_mcore.checkpoint import store
    from tinyllama_mcore.pretrain import main
    from tinyllama_mcore.training import loop

    write, step = store.write, loop.Loop._step

    def slow(*arguments: Any) -> Any:  # noqa: ANN401
        time.sleep(seconds)
        return write(*arguments)

    def failing(self: loop.Loop) -> None:
        if int(os.environ["RANK"]) == victim and self.state.iteration + 1 == iteration:
            raise ArithmeticError("of a library")
        step(self)

    store.write, loop.Loop._step = slow, failing
    if seconds > 10:
        loop.LAST_SAVE_S = 1.0
    return main(argv)
