"""How a run ends early: signals, the time limit, failures of a rank, and ranks that are stuck.

All ranks must act at the same micro-batch on what only one knows: `agreed` is one small all-reduce over gloo, which
does not involve the GPU. Neighbour: the loop, which has a `Leaving` while it trains.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from tinyllama_mcore.checkpoint.saver import Saver
from tinyllama_mcore.config.loop_config import LoopConfig
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.sampling.loader import TokenBatch

GOING_ON, LEAVE, FAILED = 0, 1, 2
"""What a rank has to say; the largest of all ranks holds for all."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Each asks a run to save and leave."""
AGAIN_S = 1.0
"""Seconds after the first SIGINT within which another one is the same, passed on by a launcher."""
ASK_AGAIN_S = 1.0
"""Seconds of an iteration after which ranks ask each other again whether to leave."""
LAST_WORDS_S = 5.0
"""Seconds that a stuck rank waits after it printed its stacks: a launcher kills the others when the first one ends."""


class Abandoned(Exception):
    """The iteration is abandoned before its update: a rank was asked to leave."""


def agreed(*values: float) -> list[float]:
    """Of each value, the largest of any rank. Collective, over gloo."""
    most = torch.tensor([float(value) for value in values])
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return most.tolist()


def micro_batches_between(count: int, seconds: float) -> int:
    """How many micro-batches of an iteration of `count` and so many seconds pass between two questions: 1 or more.

    All ranks have to come to the same: `seconds` are agreed. To agree waits for every host, and took 0.12 ms with
    2 ranks, 0.69 with 4 and 2.3 with 8 on two busy cores (gloo, torch 2.13): too much before each short micro-batch.
    """
    return max(1, int(count * ASK_AGAIN_S / seconds))


@contextmanager
def stop_signals(*, speaks: bool) -> Iterator[list[int]]:
    """A list that SIGTERM, SIGUSR1 (preemption) and SIGINT fill while the body runs, instead of ending the process.

    A second SIGINT, `AGAIN_S` after the first or later, ends it at once: launchers pass on what a terminal has sent to
    every process already. `speaks`: whether this rank tells what an interrupt does. Only the main thread may say what a
    signal does: in another one the list stays empty, and signals do what the program has them do.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {s: signal.signal(s, lambda number, _: received.append(number)) for s in STOP_SIGNALS}
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(read, True)
    threading.Thread(target=_leave_when_told_again, args=(read, speaks), name="interrupts", daemon=True).start()
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield received
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(write)
        for number, handler in previous.items():  # None: a library's in C, which Python cannot put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _leave_when_told_again(pipe: int, speaks: bool) -> None:
    """End this process at the second SIGINT in a pipe of signals; a thread, as the main one may be in a library's wait.

    Until the other end is closed.
    """
    first: float | None = None
    with open(pipe, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] != signal.SIGINT:
                continue
            if first is None:
                first = time.monotonic()
                os.write(2, b"interrupted: saving (with --save) and leaving; Ctrl-C again leaves at once\n" * speaks)
            elif time.monotonic() - first >= AGAIN_S:
                os.write(2, b"interrupted again: leaving at once, without saving\n" * speaks)
                os._exit(launch.INTERRUPTED)


class Watched(list[TokenBatch]):
    """Micro-batches, with a call before each is handed out."""

    def __init__(self, batches: Sequence[TokenBatch], before_each: Callable[[], None]) -> None:
        super().__init__(batches)
        self._before_each = before_each

    def __iter__(self) -> Iterator[TokenBatch]:
        """Each micro-batch, after the call; who only looks at one by its index does not begin it."""
        for batch in super().__iter__():
            self._before_each()
            yield batch


class Watchdog:
    """Ends this process, after telling where each of its threads stands, when nobody has called `beat` for too long.

    Every rank has one, and ranks wait for each other, so when one is stuck all of them tell within seconds.
    """

    def __init__(self, limit_s: float, rank: int) -> None:
        """Watch from the first `beat` on; a limit of 0 watches nothing."""
        self._limit, self._rank = limit_s, rank
        self._last: tuple[float, str] | None = None
        self._closed = threading.Event()
        if limit_s > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing: str) -> None:
        """Progress was made; `doing` is what comes next."""
        self._last = (time.monotonic(), doing)

    def rest(self) -> None:
        """Nothing is expected until the next `beat`."""
        self._last = None

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nothing is expected while the body runs; then the same as before."""
        last = self._last
        self.rest()
        yield
        if last is not None:
            self.beat(last[1])

    def close(self) -> None:
        """Nothing is expected any more; the thread ends."""
        self._last = None
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._limit / 4)):
            last = self._last
            if last is not None and time.monotonic() - last[0] > self._limit:
                self._end(last[1])

    def _end(self, doing: str) -> None:
        print(
            f"error: rank {self._rank} ({socket.gethostname()}, process {os.getpid()}) has made no progress for "
            f"{self._limit:g} s (--distributed-timeout-minutes), in {doing}; it ends here. Stack traces:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        time.sleep(LAST_WORDS_S)
        os._exit(1)


class Leaving:
    """Whether a run has to leave, which ranks ask each other after each iteration and, within one, once a second.

    Under a pipeline ranks stand at different micro-batches and pass activations on: they leave after the iteration, or
    after a global batch of an evaluation.
    """

    def __init__(self, loop: LoopConfig, mesh: Mesh, saver: Saver | None, signalled: Sequence[int]) -> None:
        """Count the time from now on. `signalled`: what `stop_signals` gave; `saver`: whose failure ends the run."""
        self._minutes, self._saver, self._signalled = loop.exit_duration, saver, signalled
        self._is_pipelined = mesh.pipeline.size > 1
        self._began = time.monotonic()
        self._launcher_has_ended = launch.launcher_watch()
        self._unasked, self._ask_after = 0, 1
        """Micro-batches since ranks asked each other, and how many may be: the same on all."""
        self.watchdog = Watchdog(loop.distributed_timeout_minutes * 60, mesh.rank)

    def asked(self) -> bool:
        """True if any rank was asked to leave. Collective. SaveFailed if a save in the background failed on any."""
        leaves = bool(self._signalled) or self._launcher_has_ended()
        leaves |= 0 < self._minutes <= (time.monotonic() - self._began) / 60
        word = LEAVE if leaves else GOING_ON
        word = FAILED if self._saver is not None and self._saver.failure is not None else word
        (most,) = agreed(word)
        if most == FAILED and self._saver is not None:
            self._saver.finish()
        return most == LEAVE

    def abandon_if_asked(self) -> None:
        """Abandon what is under way if any rank was asked to leave. Collective."""
        if self.asked():
            raise Abandoned

    def watched(self, micro_batches: Sequence[TokenBatch], doing: str) -> Watched:
        """The micro-batches; before each, progress was made, and from time to time leaving is asked for."""
        return Watched(micro_batches, lambda: self._before_micro_batch(doing))

    def _before_micro_batch(self, doing: str) -> None:
        self.watchdog.beat(doing)
        self._unasked += 1
        if not self._is_pipelined and self._unasked >= self._ask_after:
            self._unasked = 0
            self.abandon_if_asked()

    def after_iteration(self, micro_batches: int, seconds: float) -> None:
        """One of so many took so long on the slowest rank: ask about once a second from its end on, which asks too."""
        self._unasked, self._ask_after = 0, micro_batches_between(micro_batches, seconds)

    def ask_next(self) -> None:
        """Something took long: ask before the next micro-batch."""
        self._ask_after = 1

    def close(self) -> None:
        """The run trains no more."""
        self.watchdog.close()
