"""Results keep their order, and a worker that dies at any moment ends the job."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tinyllama_mcore.data.workers import TASKS_AHEAD_PER_WORKER, WorkerDied, in_order

LARGE = 10_000_000
"""Bytes that no pipe takes at once: who writes them waits for the reader."""


def slower_first(task: int) -> int:
    """Even tasks take longer than odd ones."""
    time.sleep(0.02 * (task % 2 == 0))
    return task


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_in_the_order_of_the_tasks(workers: int) -> None:
    """However long each takes, and with a bounded number of tasks taken from an endless supply."""
    taken: list[int] = []
    tasks = (taken.append(i) or i for i in itertools.count())
    results = in_order(slower_first, tasks, workers)
    assert list(itertools.islice(results, 20)) == list(range(20))
    results.close()
    assert len(taken) <= 20 + workers * TASKS_AHEAD_PER_WORKER
    assert not multiprocessing.active_children()


def refuse_three(task: int) -> int:
    """Raises for one task."""
    if task == 3:
        raise ValueError("three")
    return task


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_when_its_turn_comes(workers: int) -> None:
    """After the results before it, as itself."""
    results = in_order(refuse_three, range(9), workers)
    assert list(itertools.islice(results, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


class DiesAtStart:
    """A function that kills the process it is sent to before that is ready."""

    def __reduce__(self) -> tuple[object, ...]:
        """Kill in place of being made."""
        return die, (b"",)

    def __call__(self, task: bytes) -> bytes:
        """Never reached."""
        return task


def die(task: bytes) -> bytes:
    """Killed at work."""
    os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.parametrize("work", [DiesAtStart(), die])
def test_a_worker_killed_at_start_or_at_work_ends_the_job(work: DiesAtStart) -> None:
    """Also with a task on its way that does not fit into the pipe."""
    with pytest.raises(WorkerDied, match="one of 2 workers died without an answer"):
        list(in_order(work, itertools.repeat(bytes(LARGE), 9), 2))


def answer(size: int) -> bytes:
    """So many bytes."""
    return bytes(size)


def test_a_worker_killed_in_the_middle_of_an_answer_ends_the_job() -> None:
    """Half an answer is none, and nobody waits for the other half."""
    results: Iterator[bytes] = in_order(answer, itertools.chain([1], itertools.repeat(LARGE, 99)), 2)
    next(results)
    time.sleep(0.5)  # the others are being written; the pipes are full
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(WorkerDied):
        list(results)
