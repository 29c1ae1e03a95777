"""One function over many processes, its results in the order of the tasks.

Each worker has a pipe of its own and nothing else: no queue, lock or thread is shared, so a process that is killed at
any moment (start-up, mid-task, mid-answer) holds up nobody. Its end of the pipe closes with it, and that ends the job.
`concurrent.futures` shares a queue of tasks and one of results among its processes; with it a job could wait for ever.
Neighbour: `preprocess` deals out its input.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

TASKS_AHEAD_PER_WORKER = 4
"""Results that wait for an earlier one, at most: it bounds the memory."""


class WorkerDied(RuntimeError):
    """A worker process ended without an answer: killed, most often for lack of memory."""


class Crew(Generic[Result]):
    """`work` in several processes; with one worker, in this process.

    The processes are forked as the crew is made, so `work` need not be pickled and brings along what it has loaded:
    make it before threads are started or files opened that a worker must not hold.
    """

    def __init__(self, work: Callable[..., Result], workers: int, *, apart: bool = False) -> None:
        """Start the processes; `apart`: one worker is a process of its own too."""
        self._work = work
        self._members = [_start(work) for _ in range(workers)] if workers > 1 or apart else []

    def in_order(self, tasks: Iterable[tuple[Any, ...]]) -> Generator[Result, None, None]:
        """`itertools.starmap(work, tasks)`; the next tasks may only follow when these are done.

        Tasks are taken as they are needed. What `work` raises is raised here when its turn comes. An iterator that is
        not taken to its end, for an error or for another reason, ends the crew.

        Raises:
            WorkerDied: a process ended before it answered.
        """
        if not self._members:
            yield from itertools.starmap(self._work, tasks)
            return
        done = False
        try:
            yield from _dealt([pipe for _, pipe in self._members], iter(tasks))
            done = True
        except BrokenPipeError:
            raise WorkerDied(
                f"one of {len(self._members)} workers was killed before it had finished its piece "
                f"(perhaps for lack of memory: try fewer --workers)"
            ) from None
        finally:
            if not done:
                self.close()

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for process, pipe in self._members:
            process.kill()
            process.join()
            pipe.close()


def _start(work: Callable[..., Any]) -> tuple[ForkProcess, Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()  # only the worker has it from here on: when it dies, `ours` says so
    return process, ours


def _dealt(idle: list[Connection], tasks: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
    """Give each idle worker a task, take what is answered, hand results over in order. BrokenPipeError for a death."""
    busy: dict[Connection, int] = {}
    done: dict[int, tuple[Any, Exception | None]] = {}
    ahead, given, turn = len(idle) * TASKS_AHEAD_PER_WORKER, 0, 0
    while True:
        for task in itertools.islice(tasks, min(len(idle), turn + ahead - given)):
            pipe = idle.pop()
            _checked(pipe.send, task)
            busy[pipe], given = given, given + 1
        if turn in done:
            result, error = done.pop(turn)
            if error is not None:
                raise error
            yield result
            turn += 1
        elif busy:
            for pipe in busy.keys() & set(wait(list(busy))):
                done[busy.pop(pipe)] = _checked(pipe.recv)
                idle.append(pipe)
        else:
            return


def _checked(call: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
    """A call on a pipe, BrokenPipeError where the other end is gone, in whichever of its ways that shows."""
    try:
        return call(*arguments)
    except (EOFError, OSError):
        raise BrokenPipeError from None


def _serve(pipe: Connection, work: Callable[..., Any]) -> None:
    """A worker's life: answer each task with (result, None) or (None, error) until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        task = pipe.recv()
        answer: tuple[Any, Exception | None]
        try:
            answer = work(*task), None
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))
            answer = None, error
        pipe.send(answer)


def _leave_with_parent() -> None:
    """End this worker when its parent is gone, mid-task too: a parent that was killed could not end it itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
