"""This process in its job: joined and left, its GPU, its share of the host's cores, and how it ends.

`launchers` reads who it is. No other room than this one reads environment variables. Torch is imported only where a
process group or a GPU is asked for, so that refusals cost no such import.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.parallel.launchers import Launch, refuse_no_meeting, this_process

if TYPE_CHECKING:
    from torch.distributed import Store


INTERRUPTED = 130
"""Exit code of a process that Ctrl-C ended at once, as shells have it."""
MOST_THREADS = 16
"""Threads of one process that draw weights, each in a tensor of its own."""
PUBLISHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CUDA_DEVICE_MAX_CONNECTIONS")
"""Variables that a process sets while it is in a job, for torch, DeepSpeed and CUDA."""


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

    return torch.cuda.get_device_capability(gpu(this_process())) >= (8, 9)


def is_hopper() -> bool:
    """Whether this process's CUDA device is a Hopper (H100, H200), whose instructions no other GPU has."""
    import torch

    return torch.cuda.get_device_capability(gpu(this_process())) == (9, 0)


def gpu(launch: Launch) -> int:
    """Number of this process's GPU among those that it sees: its local rank, or 0 where it was given one of its own.

    Raises:
        ConfigError: it sees several, and fewer than there are processes on this machine.
    """
    import torch

    seen = torch.cuda.device_count()
    if launch.local_rank < seen:
        return launch.local_rank
    if seen == 1:
        return 0
    raise ConfigError(
        f"process {launch.local_rank} of this machine, counted from 0, sees {seen} GPUs: start at most {seen} "
        "processes a machine, or give each one of its own (srun --gpus-per-task=1)"
    )


def _refuse_shared_gpus(launch: Launch) -> None:
    """A process that sees one GPU cannot tell whose it is. Collective.

    Raises:
        ConfigError: on every rank alike, where two ranks have one GPU.
    """
    import torch

    mine = str(torch.cuda.get_device_properties(gpu(launch)).uuid)
    users = [mine] * launch.world_size
    torch.distributed.all_gather_object(users, mine)
    for rank, user in enumerate(users):
        if user in users[:rank]:
            raise ConfigError(
                f"ranks {users.index(user)} and {rank} have one GPU between them ({user}): each process needs one of "
                "its own; start as many as there are GPUs, or give each its own (srun --gpus-per-task=1)"
            )


def sees_peer() -> bool:
    """Whether this process's GPU and that of its neighbour (local ranks 0 and 1, 2 and 3, ...) can address each other.

    False where the launcher shows each process one GPU alone, and where a host has an odd number of processes, so that
    neighbours in the job are on two hosts.
    """
    import torch

    place = this_process()
    own, neighbour = place.local_rank, place.local_rank ^ 1
    there = place.local_size % 2 == 0 and max(own, neighbour) < torch.cuda.device_count()
    return there and torch.cuda.can_device_access_peer(own, neighbour)


DEVICE: Mapping[str, Callable[[], bool]] = {
    "has_gpu": has_gpu,
    "has_float8": has_float8,
    "is_hopper": is_hopper,
    "sees_peer": sees_peer,
}
"""What rules ask of the device, by their name for it."""


def threads_of_a_rank() -> int:
    """This process's share of the host's cores: at least one, at most `MOST_THREADS`."""
    cores = min(len(os.sched_getaffinity(0)), (os.cpu_count() or 1) // this_process().local_size)
    return min(max(1, cores), MOST_THREADS)


def publish(launch: Launch) -> None:
    """Spell this process's place the way torch and DeepSpeed read it, where the launcher did not.

    Without LOCAL_SIZE DeepSpeed 0.19.8 starts `numactl` at every reduction of ZeRO-3 on a CPU, to count devices.

    Raises:
        ConfigError: see `launchers.refuse_no_meeting`.
    """
    refuse_no_meeting(launch)
    place = {"RANK": launch.rank, "WORLD_SIZE": launch.world_size, "LOCAL_RANK": launch.local_rank}
    place["LOCAL_SIZE"] = launch.local_size
    os.environ.update({name: str(value) for name, value in place.items()})


@contextmanager
def joined(launch: Launch, timeout_minutes: float, *, one_queue: bool) -> Iterator[None]:
    """The job, for the length of a block: `start_process_group` before it, and left at its end, an exception's too.

    The environment is then as it was, so that processes started later take no part in the job.
    """
    before = {name: os.environ.get(name) for name in PUBLISHED}
    try:
        start_process_group(launch, timeout_minutes, one_queue=one_queue)
        yield
    except BaseException:
        _abandon_process_group()
        raise
    else:
        leave_process_group()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def start_process_group(launch: Launch, timeout_minutes: float = 10.0, *, one_queue: bool = False) -> None:
    """Join the job: gloo for CPU tensors (checkpoints, objects) and, with a GPU, NCCL for the rest.

    `one_queue`: the GPU takes kernels in the order of their launch, unless the environment says otherwise
    (`config.engines.wants_one_queue`).
    A collective that lasts a minute longer than `timeout_minutes` fails: ranks that watch themselves for as long
    (`training.stopping.Watchdog`) speak before it does. 0 means a day.

    Raises:
        ConfigError: the environment does not say where the ranks meet; or a GPU is not one process's own.
    """
    import torch

    publish(launch)
    if one_queue:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if has_gpu():
        torch.cuda.set_device(gpu(launch))
        backend = "cpu:gloo,cuda:nccl"
    else:
        backend = "gloo"
    timeout = timedelta(minutes=timeout_minutes + 1) if timeout_minutes else timedelta(days=1)
    store = torch.distributed.HashStore() if launch.world_size == 1 else _store_of_this_job(launch.rank)
    torch.distributed.init_process_group(
        backend=backend, timeout=timeout, store=store, rank=launch.rank, world_size=launch.world_size
    )
    if backend != "gloo":
        _refuse_shared_gpus(launch)


def _store_of_this_job(rank: int) -> Store:
    """Where several ranks meet, under a name of its own for each attempt of torchrun and each job of this process.

    The store outlives both: without a name of its own, gloo reads the addresses of ranks that are gone and cannot
    connect, or waits for ever (torch 2.11 and 2.13; tests/distributed/test_stopping.py and tests/test_run.py show it).
    """
    from torch.distributed import PrefixStore

    attempt = PrefixStore(f"attempt_{attempt_of_store()}", _store())
    return PrefixStore(f"job_{attempt.add(f'jobs_of_rank_{rank}', 1)}", attempt)


def is_launchers_store() -> bool:
    """Whether torchrun listens where ranks meet; else the first rank does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def attempt_of_store() -> str:
    """Which attempt of torchrun's this is, of those that share a store.

    A store of the first rank's is new in each attempt. A host that joins later has made fewer attempts than the others.
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_launchers_store() else "0"


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


def _abandon_process_group() -> None:
    """Leave the job after an exception, which other ranks may not have: nothing is sent, and nobody is waited for."""
    import torch

    if not torch.distributed.is_initialized():
        return
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    torch.distributed.distributed_c10d._abort_process_group()


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
