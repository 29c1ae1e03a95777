"""Real processes over gloo, forked from a server that has the heavy imports behind it: 1 to 5 s a job.

`pretrain` runs the program itself, as a launcher would, on every rank. A rank that fails takes the job down.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import itertools
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyllama_mcore.config import metrics_lines

CHECKOUT = Path(__file__).resolve().parents[2]
PRELOADED = (
    *(f"tinyllama_mcore.engine.{engine}_engine" for engine in ("deepspeed", "fsdp")),
    *("tinyllama_mcore.training.loop", "tinyllama_mcore.run", "tinyllama_mcore.pretrain"),
    *("megatron.core.datasets.gpt_dataset", "deepspeed.module_inject.auto_ep_layer"),
    *("pytest", "transformers.models.llama.modeling_llama"),  # where a rank's function stands beside a test
)
"""What the server imports: all that ranks would otherwise import one by one."""


SLOTS, PORTS_OF_A_SLOT, FIRST_PORT = 60, 200, 20_000
"""Ports that tests listen on: below those that Linux gives to whoever connects (from 32,768 on)."""


def free_port() -> int:
    """A TCP port that nobody listens on, and that no other process takes from here while this one lives."""
    for port in _ports():
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable: the ports go round")


@functools.cache
def _ports() -> Iterator[int]:
    """This process's slot, round and round: the first one whose file nobody has locked."""
    home = Path(tempfile.gettempdir()) / "tinyllama-ports"
    home.mkdir(exist_ok=True)
    for slot in range(SLOTS):
        lock = os.open(home / str(slot), os.O_CREAT | os.O_RDWR)  # open, and so locked, as long as this process lives
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        first = FIRST_PORT + slot * PORTS_OF_A_SLOT
        return itertools.cycle(range(first, first + PORTS_OF_A_SLOT))
    raise RuntimeError(f"all {SLOTS} slots of ports are taken: see {home}")


def _child(
    rank: int, world_size: int, port: int, log: Path, function: Callable[..., int], args: tuple[Any, ...]
) -> None:
    """One rank: its environment as torchrun sets it, its output in a file, its exit code the function's."""
    gc.freeze()  # ZeRO-3 collects garbage ten times while it starts: not among a million objects of the imports
    stream = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    place = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    try:
        code = function(*args) or 0
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the parent's own exit handlers are not this process's


def start(world_size: int, function: Callable[..., int], *args: object, logs: Path) -> list[multiprocessing.Process]:
    """Start `function(*args)` on every rank; the caller joins."""
    # not a plain fork of this process: torch refuses a backward pass in the child of a process that ran one
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload([*PRELOADED])
    port = free_port()
    logs.mkdir(parents=True, exist_ok=True)
    ranks = [
        fork.Process(target=_child, args=(rank, world_size, port, logs / f"rank{rank}.log", function, args))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def run(world_size: int, function: Callable[..., int], *args: object, logs: Path, timeout: float = 120) -> list[int]:
    """Run `function(*args)` on every rank to the end; returns the exit codes. A stuck job is killed and told."""
    ranks = start(world_size, function, *args, logs=logs)
    for rank in ranks:
        rank.join(timeout)
    for rank in ranks:
        if rank.is_alive():
            rank.kill()
            rank.join()
    return [rank.exitcode for rank in ranks]


def pretrain(argv: Sequence[str], *, world_size: int, logs: Path) -> str:
    """Run the trainer on `world_size` ranks and demand success; returns rank 0's output."""
    codes = run(world_size, _pretrain, list(argv), logs=logs)
    output = (logs / "rank0.log").read_text()
    assert codes == [0] * world_size, f"exit codes {codes}\n{_tails(logs)}"
    return output


def program(words: Sequence[str], *, logs: Path, cwd: Path = CHECKOUT) -> tuple[int, str]:
    """Run a script as `python SCRIPT FLAGS` would, but for the imports that it finds made; its exit code and output."""
    (code,) = run(1, _program, list(words), str(cwd), logs=logs)
    return code, (logs / "rank0.log").read_text()


def _program(words: list[str], cwd: str) -> int:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]  # no launcher started it
    os.chdir(cwd)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _pretrain(argv: list[str]) -> int:
    from tinyllama_mcore.pretrain import main

    return main(argv)


def _tails(logs: Path) -> str:
    return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(logs.glob("rank*.log")))


def metrics(path: Path) -> list[dict[str, Any]]:
    """The iterations of a metrics file."""
    return metrics_lines.steps(path.read_text())
