"""Every launcher says in its own words who a process is; what is half said, or cannot be, is refused."""

from __future__ import annotations

import itertools

import pytest

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.parallel import launch

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "16", "SLURM_NTASKS": "16"}
SRUN = {**STEP, "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
SET_BY = {  # launcher -> what it sets, as its documentation and DeepSpeed 0.19.8's launcher/ have it; rank, size, local
    "torchrun": ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
    "torchrun under srun": (
        {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **SRUN, "SLURM_PROCID": "0"},
        (3, 8, 1),
    ),
    "deepspeed, mpich": (
        {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "PMI_RANK": "3", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"},
        (3, 8, 1),
    ),
    "mpirun of Open MPI": (
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
        (3, 8, 1),
    ),
    "mpirun of Open MPI, its daemons by srun": (
        {**SRUN, "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
        (3, 8, 1),
    ),
    "mpirun of MVAPICH": (
        {"MV2_COMM_WORLD_RANK": "3", "MV2_COMM_WORLD_SIZE": "8", "MV2_COMM_WORLD_LOCAL_RANK": "1"},
        (3, 8, 1),
    ),
    "mpiexec of MPICH or Intel": ({"PMI_RANK": "3", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"}, (3, 8, 1)),
    "mpiexec of Cray": ({"PMI_RANK": "3", "PMI_SIZE": "8", "PALS_LOCAL_RANKID": "1"}, (3, 8, 1)),
    "mpiexec of one process": ({"PMI_RANK": "0", "PMI_SIZE": "1"}, (0, 1, 0)),
    "srun": (SRUN, (5, 16, 1)),
    "srun --mpi=pmi2": ({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "16"}, (5, 16, 1)),
    "srun without its job": ({"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1"}, (5, 16, 1)),
    "python": ({}, (0, 1, 0)),
    "python in salloc": ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, (0, 1, 0)),
    "python in a batch script": (
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        (0, 1, 0),
    ),
    "python in an interactive step": ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0)),
}
ROWS = {words.launcher: words for words in launch.LAUNCHERS}


def said(words: launch.Words, rank: str = "3", size: str = "8", local_rank: str = "1") -> dict[str, str]:
    """What a launcher of a row sets."""
    return {words.rank: rank, words.size: size, words.local_rank[0]: local_rank}


@pytest.mark.parametrize("launcher", SET_BY)
def test_place(launcher: str) -> None:
    """Rank, world size, local rank."""
    environment, (rank, world_size, local_rank) = SET_BY[launcher]
    assert launch.read(environment) == launch.Launch(rank=rank, world_size=world_size, local_rank=local_rank)


@pytest.mark.parametrize("row", ROWS)
def test_the_whole_table_is_tried(row: str) -> None:
    """No row without a launcher above."""
    assert any(ROWS[row].rank in environment for environment, _ in SET_BY.values())


@pytest.mark.parametrize(("row", "missing"), itertools.product(ROWS, ("rank", "size", "local_rank")))
def test_what_is_half_said_is_refused(row: str, missing: str) -> None:
    """Naming the variable; but for srun's number of tasks, which an allocation has too."""
    words = ROWS[row]
    name = words.local_rank[0] if missing == "local_rank" else getattr(words, missing)
    environment = {other: value for other, value in said(words).items() if other != name}
    if (row, missing) == ("srun", "rank"):
        assert launch.read(environment).world_size == 1
        return
    with pytest.raises(ConfigError, match=rf"{name} is not"):
        launch.read(environment)


@pytest.mark.parametrize(
    ("row", "wrong"),
    itertools.product(
        ROWS,
        [
            ("rank", "8"),
            ("rank", "-1"),
            ("rank", "x"),
            ("rank", ""),
            ("rank", "1.0"),
            ("size", "0"),
            ("size", "-8"),
            ("size", "eight"),
            ("local_rank", "8"),
            ("local_rank", "-1"),
            ("local_rank", "cuda:1"),
        ],
    ),
)
def test_what_cannot_be_is_refused(row: str, wrong: tuple[str, str]) -> None:
    """Naming the variable and its value."""
    words, (field, value) = ROWS[row], wrong
    name = words.local_rank[0] if field == "local_rank" else getattr(words, field)
    with pytest.raises(ConfigError, match=rf"{name}={value} must be a whole number from [01]"):
        launch.read({**said(words), name: value})


def test_several_processes_have_to_know_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun` alone: told how to export it, rather than torch's traceback."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="export MASTER_ADDR"):
        launch.start_process_group(launch.Launch(rank=0, world_size=2, local_rank=0))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ConfigError, match="MASTER_PORT not set"):
        launch.start_process_group(launch.Launch(rank=0, world_size=2, local_rank=0))
