"""The launchers' tables: how each says who a process is, and what is read of that.

Each launcher says so in variables of its own (`LAUNCHERS`); plain `python` says nothing and is a job of one. Neighbour:
`launch` takes part in the job.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tinyllama_mcore.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One process's place in the job."""

    rank: int
    world_size: int
    local_rank: int
    """Number of this process on its machine."""
    local_size: int
    """Processes of the job on this machine; all of the job's where the launcher does not say."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """How one launcher says who a process is."""

    launcher: str
    rank: str
    size: str
    local_rank: tuple[str, ...]
    """Number of the process on its machine; the first name that is set."""
    local_size: tuple[str, ...]
    """Processes of the job on the machine; the first name that is set."""


MOST_PORTS = 65_535
"""The largest number of a port."""
SLURM_SIZES = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
"""Tasks on each node of a step, and of an allocation: "4", "8(x2),4"."""
LAUNCHERS = (
    Words(
        launcher="torchrun or deepspeed",
        rank="RANK",
        size="WORLD_SIZE",
        local_rank=("LOCAL_RANK",),
        local_size=("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    ),
    Words(
        launcher="Open MPI",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
        local_size=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    Words(
        launcher="MVAPICH",
        rank="MV2_COMM_WORLD_RANK",
        size="MV2_COMM_WORLD_SIZE",
        local_rank=("MV2_COMM_WORLD_LOCAL_RANK",),
        local_size=("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    Words(
        launcher="MPICH or Intel MPI",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank=("MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "SLURM_LOCALID"),
        local_size=("MPI_LOCALNRANKS", "PALS_LOCAL_SIZE", *SLURM_SIZES),
    ),
    Words(
        launcher="srun",
        rank="SLURM_PROCID",
        size="SLURM_NTASKS",
        local_rank=("SLURM_LOCALID",),
        local_size=SLURM_SIZES,
    ),
)
"""The first row whose rank is set wins: where srun started torchrun, or mpirun its helpers by srun, SLURM's rank is not
ours. All launchers of DeepSpeed 0.19.8 (launcher/multinode_runner.py) end in one of these rows."""


def this_process(environment: Mapping[str, str] = os.environ) -> Launch:
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
    return Launch(rank=0, world_size=1, local_rank=0, local_size=1)


def refuse_no_meeting(place: Launch, environment: Mapping[str, str] = os.environ) -> None:
    """ConfigError where processes do not know where they meet (srun says nothing), or where nobody can.

    It can be so on one machine only: each rank has to print its own.
    """
    if place.world_size == 1:
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name, "").strip()]
    if missing:
        raise ConfigError(
            f"{place.world_size} processes, but {' and '.join(missing)} not set: under srun, first "
            "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) MASTER_PORT=29500; under "
            "mpirun give the host of rank 0, -x MASTER_ADDR=HOST -x MASTER_PORT=29500 (Open MPI) or -genv (MPICH)"
        )
    port = environment["MASTER_PORT"].strip()
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= MOST_PORTS):
        raise ConfigError(f"MASTER_PORT={port} must be a whole number from 1 to {MOST_PORTS}, such as 29500")


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
    named = next((name for name in words.local_rank if name in environment), None)
    if named is None and size > 1:
        raise ConfigError(
            f"{words.rank}={rank} and {words.size}={size} are set and {words.local_rank[0]} is not: without the number "
            "of a process on its machine, all would take the first GPU. Export it, counted from 0 on each machine"
        )
    local_rank = 0 if named is None else number(named, size)
    local_size = _local_size(words, environment)
    return Launch(
        rank=rank,
        world_size=size,
        local_rank=local_rank,
        local_size=local_size if local_size is not None and local_rank < local_size <= size else size,
    )


def _local_size(words: Words, environment: Mapping[str, str]) -> int | None:
    """Processes on this machine, as the launcher says; None where it does not, or nothing that can be read."""
    name = next((name for name in words.local_size if name in environment), None)
    text = "" if name is None else environment[name].strip()
    if name in SLURM_SIZES:
        text = _of_this_node(text, environment.get("SLURM_NODEID", ""))
    return int(text) if text.isascii() and text.isdigit() else None


def _of_this_node(sizes: str, node: str) -> str:
    """The number of a node in SLURM's list of all: "8(x2),4" and "2" give "4"."""
    each: list[str] = []
    for part in sizes.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            return ""
        each += [found[1]] * int(found[2] or 1)
    return each[int(node)] if node.isascii() and node.isdigit() and int(node) < len(each) else ""
