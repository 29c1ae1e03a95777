"""The launcher's environment: who this process is in the job. The one room that reads environment variables.

Each launcher says so in variables of its own (`LAUNCHERS`); plain `python` says nothing and is a job of one.
Torch is imported only where a process group or a GPU is asked for, so that refusals cost no such import.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tinyllama_mcore.config.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import Store


INTERRUPTED = 130
"""Exit code of a process that Ctrl-C ended at once, as shells have it."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One process's place in the job."""

    rank: int
    world_size: int
    local_rank: int
    """Number of this process on its machine."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """How one launcher says who a process is."""

    launcher: str
    rank: str
    size: str
    local_rank: tuple[str, ...]
    """Number of the process on its machine; the first name that is set."""


LAUNCHERS = (
    Words(launcher="torchrun or deepspeed", rank="RANK", size="WORLD_SIZE", local_rank=("LOCAL_RANK",)),
    Words(
        launcher="Open MPI",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
    ),
    Words(
        launcher="MVAPICH",
        rank="MV2_COMM_WORLD_RANK",
        size="MV2_COMM_WORLD_SIZE",
        local_rank=("MV2_COMM_WORLD_LOCAL_RANK",),
    ),
    Words(
        launcher="MPICH or Intel MPI",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank=("MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "SLURM_LOCALID"),
    ),
    Words(launcher="srun", rank="SLURM_PROCID", size="SLURM_NTASKS", local_rank=("SLURM_LOCALID",)),
)
"""The first row whose rank is set wins: srun may start torchrun, and mpirun its helpers by srun; its ranks are not ours
then. All launchers of DeepSpeed 0.19.8 (launcher/multinode_runner.py) end in one of these rows."""


def read(environment: Mapping[str, str] = os.environ) -> Launch:
    """This process's place in the job; a job of one where no launcher has spoken.

    Raises:
        ConfigError: a launcher said half of it, or something that cannot be.
    """
    for words in LAUNCHERS:
        if words.rank in environment and not _is_slurm_shell(words, environment):
            return _place(words, environment)
    for words in LAUNCHERS[:-1]:  # SLURM_NTASKS alone is an allocation that nothing was started in
        half = next((name for name in (words.size, words.local_rank[0]) if name in environment), None)
        if half is not None:
            raise ConfigError(
                f"{half}={environment[half]} is set and {words.rank} is not: {words.launcher} sets both. Start the "
                f"script with its launcher, or unset {half} to train in one process"
            )
    return Launch(rank=0, world_size=1, local_rank=0)


def _is_slurm_shell(words: Words, environment: Mapping[str, str]) -> bool:
    """Whether SLURM_PROCID is that of a batch script or an interactive shell, which count as rank 0 of all tasks.

    What srun started has SLURM_STEP_ID; the shell of an interactive step is a step of one task.
    """
    if words.rank != "SLURM_PROCID":
        return False
    is_script = "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
    return is_script or environment.get("SLURM_STEP_NUM_TASKS") == "1"


def _place(words: Words, environment: Mapping[str, str]) -> Launch:
    """The place that a launcher gives; ConfigError where it is half given or cannot be."""

    def number(name: str, end: int | None) -> int:
        """A whole number from 0, or from 1 where it has no `end`."""
        first = 1 if end is None else 0
        text = environment[name].strip()
        if not (text.isascii() and text.isdigit() and first <= int(text) and (end is None or int(text) < end)):
            most = "" if end is None else f" to {end - 1}, as {words.size}={environment[words.size]}"
            raise ConfigError(
                f"{name}={environment[name]} must be a whole number from {first}{most} ({words.launcher})"
            )
        return int(text)

    if words.size not in environment:
        raise ConfigError(
            f"{words.rank}={environment[words.rank]} is set and {words.size} is not: {words.launcher} sets both. "
            f"Export {words.size}, the number of processes, or unset {words.rank} to train in one process"
        )
    size = number(words.size, None)
    rank = number(words.rank, size)
    local_rank = next((name for name in words.local_rank if name in environment), None)
    if local_rank is None and size > 1:
        raise ConfigError(
            f"{words.rank}={rank} and {words.size}={size} are set and {words.local_rank[0]} is not: without the number "
            "of a process on its machine, all would take the first GPU. Export it, counted from 0 on each machine"
        )
    return Launch(rank=rank, world_size=size, local_rank=0 if local_rank is None else number(local_rank, size))


_LAUNCHERS = frozenset({"deepspeed", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run"})
"""Programs and modules that start ranks and wait for them."""


def launcher_watch() -> Callable[[], bool]:
    """A question to ask again and again: whether a launcher that waited for this process has ended.

    Nobody takes the exit code of such a job, and it holds its GPUs: it should save and leave. `deepspeed` ends at any
    signal, torchrun at SIGUSR1, and neither passes it on (DeepSpeed 0.19.8, torch 2.13; tests/distributed/
    test_launchers.py shows it). Shells are not asked for: a job may outlive one.
    """
    import psutil

    def is_launcher(process: psutil.Process) -> bool:
        try:
            return any(Path(word).name in _LAUNCHERS for word in process.cmdline()[:4])
        except psutil.Error:
            return False

    launchers = list(itertools.takewhile(is_launcher, psutil.Process().parents()))

    def has_ended() -> bool:
        try:
            return any(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in launchers)
        except psutil.NoSuchProcess:
            return True

    return has_ended


def process_age() -> float:
    """Seconds since this process was started."""
    import psutil

    return time.time() - psutil.Process().create_time()


def quiet_third_parties() -> None:
    """Megatron and DeepSpeed warn at import of what they could use and do not need; users can do nothing about it."""
    for module in ("megatron", "deepspeed", r"torch\.jit"):
        warnings.filterwarnings("ignore", module=rf"{module}\..*")
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+.* is deprecated", category=FutureWarning)


def has_gpu() -> bool:
    """Whether a CUDA device can be used by this process."""
    import torch

    return torch.cuda.is_available()


def has_float8() -> bool:
    """Whether this process's CUDA device multiplies in float8: Ada (8.9), Hopper (9.0) and later."""
    import torch

    return torch.cuda.get_device_capability(read().local_rank) >= (8, 9)


def is_hopper() -> bool:
    """Whether this process's CUDA device is a Hopper (H100, H200), whose instructions no other GPU has."""
    import torch

    return torch.cuda.get_device_capability(read().local_rank) == (9, 0)


def sees_peer() -> bool:
    """Whether this process's GPU and that of its neighbour (local ranks 0 and 1, 2 and 3, ...) can address each other.

    False where the launcher shows each process one GPU alone.
    """
    import torch

    own = read().local_rank
    there = max(own, own ^ 1) < torch.cuda.device_count()
    return there and torch.cuda.can_device_access_peer(own, own ^ 1)


DEVICE: Mapping[str, Callable[[], bool]] = {
    "has_gpu": has_gpu,
    "has_float8": has_float8,
    "is_hopper": is_hopper,
    "sees_peer": sees_peer,
}
"""What rules ask of the device, by their name for it."""


def threads_of_a_rank() -> int:
    """This process's share of the host's cores, at least one."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _publish(launch: Launch) -> None:
    """Spell this process's place the way torch and DeepSpeed read it, where the launcher did not.

    Raises:
        ConfigError: a job of several processes without MASTER_ADDR or MASTER_PORT (srun sets neither).
    """
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if launch.world_size > 1 and missing:
        raise ConfigError(
            f"{launch.world_size} processes, but {' and '.join(missing)} not set: under srun, first "
            "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) MASTER_PORT=29500; under "
            "mpirun give the host of rank 0, -x MASTER_ADDR=HOST -x MASTER_PORT=29500 (Open MPI) or -genv (MPICH)"
        )
    place = {"RANK": launch.rank, "WORLD_SIZE": launch.world_size, "LOCAL_RANK": launch.local_rank}
    os.environ.update({name: str(value) for name, value in place.items()})
    if launch.world_size == 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            os.environ.setdefault("MASTER_PORT", str(probe.getsockname()[1]))


def start_process_group(launch: Launch, timeout_minutes: float = 10.0, *, tensor_parallel: bool = False) -> None:
    """Join the job: gloo for CPU tensors (checkpoints, objects) and, with a GPU, NCCL for the rest.

    Megatron's tensor parallelism overlaps its collectives in the right order only with one hardware queue (before
    Blackwell); sharding without it overlaps only with several, so nothing is set then (Megatron-LM, arguments.py).
    A collective that lasts a minute longer than `timeout_minutes` fails: ranks that watch themselves for as long
    (`training.stopping.Watchdog`) speak before it does. 0 means a day.
    """
    import torch

    _publish(launch)
    if tensor_parallel:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if has_gpu():
        torch.cuda.set_device(launch.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    else:
        backend = "gloo"
    timeout = timedelta(minutes=timeout_minutes + 1) if timeout_minutes else timedelta(days=1)
    store = _store_of_this_job(launch.rank)
    torch.distributed.init_process_group(
        backend=backend, timeout=timeout, store=store, rank=launch.rank, world_size=launch.world_size
    )


def _store_of_this_job(rank: int) -> Store:
    """Where the ranks meet, under a name of its own for each attempt of torchrun and each job of this process.

    The store outlives both: without a name of its own, gloo reads the addresses of ranks that are gone and cannot
    connect, or waits for ever (torch 2.11 and 2.13; tests/distributed/test_stopping.py and tests/test_run.py show it).
    """
    from torch.distributed import PrefixStore

    attempt = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", _store())
    return PrefixStore(f"job_{attempt.add(f'jobs_of_rank_{rank}', 1)}", attempt)


@functools.cache
def _store() -> Store:
    """The launcher's store or rank 0's, kept as long as the process: its port may not be listened on twice."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return store


def leave_process_group() -> None:
    """Leave the job in good order, once nothing more is sent: NCCL warns of a process that just ends."""
    import torch
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


@contextmanager
def interrupted_quietly() -> Iterator[None]:
    """Before training and after it, Ctrl-C ends the process with one line in place of a traceback."""

    def leave_now(*_: object) -> None:
        print("interrupted: no training was under way", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    previous = signal.signal(signal.SIGINT, leave_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def leave(code: int) -> NoReturn:
    """End this process with an exit code, past the end of the interpreter. Everything has to be written and closed.

    Each process group of gloo has threads that let go of the tensors of a collective some time after it is done, and
    groups live as long as any library holds them. A thread that lets go while the interpreter ends is ended in the
    middle of a C++ destructor, which aborts the process: `terminate called without an active exception`, exit code 250
    under deepspeed (torch 2.13, ProcessGroupGloo::runLoop, TensorImpl::decref_pyobject; two of a hundred ends on a busy
    machine; tests/distributed/test_ends.py). What libraries registered for the exit is done before.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # who read it may be gone
            stream.flush()
    os._exit(code)
