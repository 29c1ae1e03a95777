"""Signals and the watchdog, as a program that does more than train meets them; real jobs are in tests/distributed."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import pytest

from tinyllama_mcore.training import stopping


def test_only_the_main_thread_says_what_a_signal_does() -> None:
    """In another one a run trains, and hears of no signal."""
    found: list[object] = []

    def body() -> None:
        with stopping.stop_signals(speaks=True) as received:
            found.append(received)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [[]]


def test_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own; where a library in C had one, which Python sees as None, the default takes its place."""

    def mine(number: int, frame: FrameType | None) -> None:
        """A handler of the program."""

    replace = signal.signal

    def as_if_c_had_sigusr1(number: int, handler: object) -> object:
        before = replace(number, handler)
        return None if number == signal.SIGUSR1 and handler not in (mine, signal.SIG_DFL) else before

    before = {number: signal.signal(number, mine) for number in stopping.STOP_SIGNALS}
    try:
        monkeypatch.setattr(signal, "signal", as_if_c_had_sigusr1)
        with stopping.stop_signals(speaks=False) as received:
            os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.undo()
        assert received == [signal.SIGTERM]
        assert [signal.getsignal(number) for number in stopping.STOP_SIGNALS] == [mine, signal.SIG_DFL, mine]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_watchdog_ends_with_its_run() -> None:
    """A program that trains often does not gather threads."""
    before = set(threading.enumerate())
    watchdog = stopping.Watchdog(0.4, rank=0)
    watchdog.beat("a test")
    (thread,) = (each for each in threading.enumerate() if each not in before)
    watchdog.close()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("count", "seconds", "between"), [(64, 0.5, 128), (64, 16.0, 4), (8, 60.0, 1), (1, 0.01, 100), (1, 30.0, 1)]
)
def test_ranks_ask_about_once_a_second(count: int, seconds: float, between: int) -> None:
    """Within an iteration only where it is long; never less often than once a second, or a micro-batch."""
    assert stopping.micro_batches_between(count, seconds) == between
