"""Results keep their order, and a worker that dies at any moment ends the job."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time

import pytest

from tests import forked
from tinyllama_mcore.preprocessing.workers import TASKS_AHEAD_PER_WORKER, Crew, WorkerDied

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
    tasks = ((taken.append(i) or i,) for i in itertools.count())
    results = Crew(slower_first, workers).in_order(tasks)
    assert list(itertools.islice(results, 20)) == list(range(20))
    results.close()
    assert len(taken) <= 20 + workers * TASKS_AHEAD_PER_WORKER
    assert not forked.others()


def refuse_three(task: int) -> int:
    """Raises for one task."""
    if task == 3:
        raise ValueError("three")
    return task


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_when_its_turn_comes(workers: int) -> None:
    """After the results before it, as itself."""
    results = Crew(refuse_three, workers).in_order(zip(range(9)))
    assert list(itertools.islice(results, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert not forked.others()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crew_works_more_than_once(workers: int) -> None:
    """The same processes take the next tasks, until they are sent home."""
    crew = Crew(slower_first, workers)
    for first in (0, 7):
        assert list(crew.in_order(zip(range(first, first + 5)))) == list(range(first, first + 5))
    crew.close()
    assert not forked.others()


def die(task: bytes) -> bytes:
    """Killed at work."""
    os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.parametrize("early", [True, False])
def test_a_worker_killed_at_start_or_at_work_ends_the_job(early: bool) -> None:
    """Also with a task on its way that does not fit into the pipe."""
    crew = Crew(die, 2)
    if early:
        for worker in forked.others():
            worker.kill()
    with pytest.raises(WorkerDied, match="one of 2 workers was killed before it had finished"):
        list(crew.in_order(itertools.repeat((bytes(LARGE),), 9)))
    assert not forked.others()


def answer(size: int) -> bytes:
    """So many bytes."""
    return bytes(size)


def test_a_worker_killed_in_the_middle_of_an_answer_ends_the_job() -> None:
    """Half an answer is none, and nobody waits for the other half."""
    results = Crew(answer, 2).in_order(itertools.chain([(1,)], itertools.repeat((LARGE,), 99)))
    next(results)
    time.sleep(0.5)  # the others are being written; the pipes are full
    for worker in forked.others():
        worker.kill()
    with pytest.raises(WorkerDied):
        list(results)


def test_one_worker_is_this_process_or_one_apart() -> None:
    """What starts threads is called apart, as workers are forked from this process."""
    for apart in (False, True):
        with contextlib.closing(Crew(os.getpid, 1, apart=apart)) as crew:
            assert (list(crew.in_order([()])) == [os.getpid()]) != apart
