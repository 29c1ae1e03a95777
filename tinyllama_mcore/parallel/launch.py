"""The launcher's environment: who this process is in the job. The one room that reads environment variables.

`deepspeed`, `torchrun` and `srun` say so in different variables; plain `python` says nothing and is a job of one.
Torch is imported only where a process group or a GPU is asked for, so that refusals cost no such import.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllama_mcore.config.schema import ConfigError

if TYPE_CHECKING:
    from torch.distributed import Store


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One process's place in the job."""

    rank: int
    world_size: int
    local_rank: int
    """Number of this process on its machine."""


# (rank, world size, local rank) as each launcher spells them; the first row whose rank is set wins.
_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # deepspeed, torchrun
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),  # srun
)


def read(environment: Mapping[str, str] = os.environ) -> Launch:
    """This process's place in the job; a job of one where no launcher has spoken."""
    for rank, world_size, local_rank in _VARIABLES:
        if rank in environment:
            return Launch(
                rank=int(environment[rank]),
                world_size=int(environment.get(world_size, 1)),
                local_rank=int(environment.get(local_rank, 0)),
            )
    return Launch(rank=0, world_size=1, local_rank=0)


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


def _publish(launch: Launch) -> None:
    """Spell this process's place the way torch and DeepSpeed read it, where the launcher did not.

    Raises:
        ConfigError: a job of several processes that nobody told where to meet (srun does not).
    """
    if launch.world_size > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"{launch.world_size} processes, but MASTER_ADDR is not set: under srun, first "
            "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) MASTER_PORT=29500"
        )
    os.environ.setdefault("RANK", str(launch.rank))
    os.environ.setdefault("WORLD_SIZE", str(launch.world_size))
    os.environ.setdefault("LOCAL_RANK", str(launch.local_rank))
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
    store = _store_of_this_attempt(launch)
    place: dict[str, Any] = (
        {} if store is None else {"store": store, "rank": launch.rank, "world_size": launch.world_size}
    )
    torch.distributed.init_process_group(backend=backend, timeout=timeout, **place)


def _store_of_this_attempt(launch: Launch) -> Store | None:
    """Where the ranks of a job that torchrun restarted meet; None where nobody keeps a store for them.

    The store is the agent's and outlives an attempt: without a prefix, gloo reads the addresses of ranks that are dead
    and cannot connect, or waits for ever (torch 2.11 and 2.13; tests/distributed/test_stopping.py shows it).
    """
    from torch.distributed import PrefixStore, TCPStore

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), launch.world_size, is_master=False)
    return PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def leave_process_group() -> None:
    """Leave the job in good order, once nothing more is sent: NCCL warns of a process that just ends."""
    import torch

    torch.distributed.destroy_process_group()
