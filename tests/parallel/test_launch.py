"""Every launcher says in its own words who a process is; what is half said, or cannot be, is refused."""

from __future__ import annotations

import itertools

import pytest

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.parallel import launch, launchers

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "16", "SLURM_NTASKS": "16"}
NODES = {"SLURM_STEP_TASKS_PER_NODE": "4(x4)", "SLURM_TASKS_PER_NODE": "8(x2)", "SLURM_NODEID": "1"}
SRUN = {**STEP, **NODES, "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
SET_BY = {  # what each sets, as its documentation and DeepSpeed 0.19.8's launcher/ have it: rank, size, local both
    "torchrun": (TORCHRUN, (3, 8, 1, 2)),
    "torchrun under srun": ({**TORCHRUN, **SRUN, "SLURM_PROCID": "0"}, (3, 8, 1, 2)),
    "deepspeed": ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"}, (3, 8, 1, 4)),
    "deepspeed, mpich": (
        {
            "RANK": "3",
            "WORLD_SIZE": "8",
            "LOCAL_RANK": "1",
            "LOCAL_SIZE": "4",
            "PMI_RANK": "3",
            "PMI_SIZE": "8",
            "MPI_LOCALRANKID": "1",
        },
        (3, 8, 1, 4),
    ),
    "mpirun of Open MPI": (OPEN_MPI, (3, 8, 1, 2)),
    "mpirun of Open MPI, its daemons by srun": ({**SRUN, **OPEN_MPI}, (3, 8, 1, 2)),
    "mpirun of MVAPICH": (
        {
            "MV2_COMM_WORLD_RANK": "3",
            "MV2_COMM_WORLD_SIZE": "8",
            "MV2_COMM_WORLD_LOCAL_RANK": "1",
            "MV2_COMM_WORLD_LOCAL_SIZE": "4",
        },
        (3, 8, 1, 4),
    ),
    "mpiexec of MPICH or Intel": (
        {"PMI_RANK": "3", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
        (3, 8, 1, 2),
    ),
    "mpiexec of Cray": (
        {"PMI_RANK": "3", "PMI_SIZE": "8", "PALS_LOCAL_RANKID": "1", "PALS_LOCAL_SIZE": "2"},
        (3, 8, 1, 2),
    ),
    "mpiexec of one process": ({"PMI_RANK": "0", "PMI_SIZE": "1"}, (0, 1, 0, 1)),
    "srun": (SRUN, (5, 16, 1, 4)),
    "srun, other numbers on each node": (
        {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4(x3),3,1", "SLURM_NODEID": "3"},
        (5, 16, 1, 3),
    ),
    "srun of one node of many": ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "16", "SLURM_NODEID": "0"}, (5, 16, 1, 16)),
    "srun --mpi=pmi2": ({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "16"}, (5, 16, 1, 4)),
    "srun without its job": ({"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1"}, (5, 16, 1, 16)),
    "python": ({}, (0, 1, 0, 1)),
    "python in salloc": ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, (0, 1, 0, 1)),
    "python in a batch script": (
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        (0, 1, 0, 1),
    ),
    "python in an interactive step": ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0, 1)),
    "hands": ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1, 8)),
    "hands that are wrong": ({**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}, (3, 8, 1, 8)),
    "hands that are no numbers": ({**TORCHRUN, "LOCAL_WORLD_SIZE": "two"}, (3, 8, 1, 8)),
}
ROWS = {words.launcher: words for words in launchers.LAUNCHERS}


def said(words: launchers.Words, rank: str = "3", size: str = "8", local_rank: str = "1") -> dict[str, str]:
    """What a launcher of a row sets."""
    return {words.rank: rank, words.size: size, words.local_rank[0]: local_rank}


@pytest.mark.parametrize("launcher", SET_BY)
def test_place(launcher: str) -> None:
    """Rank, world size, and the same on its machine: all of the job's where nobody says how many."""
    environment, (rank, world_size, local_rank, local_size) = SET_BY[launcher]
    place = launchers.Launch(rank=rank, world_size=world_size, local_rank=local_rank, local_size=local_size)
    assert launchers.this_process(environment) == place


@pytest.mark.parametrize("row", ROWS)
def test_the_whole_table_is_tried(row: str) -> None:
    """No row, and no name of a number of processes, without a launcher above."""
    mine = [environment for environment, _ in SET_BY.values() if ROWS[row].rank in environment]
    assert {name for name in ROWS[row].local_size if any(name in environment for environment in mine)} == {
        *ROWS[row].local_size
    }


@pytest.mark.parametrize(("row", "missing"), itertools.product(ROWS, ("rank", "size", "local_rank")))
def test_what_is_half_said_is_refused(row: str, missing: str) -> None:
    """Naming the variable; but for srun's number of tasks, which an allocation has too."""
    words = ROWS[row]
    name = words.local_rank[0] if missing == "local_rank" else getattr(words, missing)
    environment = {other: value for other, value in said(words).items() if other != name}
    if (row, missing) == ("srun", "rank"):
        assert launchers.this_process(environment).world_size == 1
        return
    with pytest.raises(ConfigError, match=rf"{name} is not"):
        launchers.this_process(environment)


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
        launchers.this_process({**said(words), name: value})


def test_several_processes_have_to_know_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun` alone: told how to export it, rather than torch's traceback."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="export MASTER_ADDR"):
        launch.start_process_group(launchers.Launch(rank=0, world_size=2, local_rank=0, local_size=2))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ConfigError, match="MASTER_PORT not set"):
        launch.start_process_group(launchers.Launch(rank=0, world_size=2, local_rank=0, local_size=2))


@pytest.mark.parametrize(
    ("cores", "mine", "ranks_here", "threads"), [(128, 128, 8, 16), (128, 128, 64, 2), (128, 4, 8, 4), (2, 2, 8, 1)]
)
def test_a_rank_draws_in_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, mine: int, ranks_here: int, threads: int
) -> None:
    """Of the host's, and no more than it may use; at most MOST_THREADS tensors are in the making."""
    monkeypatch.setattr(launch.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(mine)))
    for name, value in {"RANK": 0, "WORLD_SIZE": 128, "LOCAL_RANK": 0, "LOCAL_SIZE": ranks_here}.items():
        monkeypatch.setenv(name, str(value))
    assert launch.threads_of_a_rank() == threads


@pytest.mark.parametrize(("seen", "local_rank", "gpu"), [(8, 3, 3), (1, 3, 0), (1, 0, 0), (2, 3, None), (0, 0, None)])
def test_the_gpu_of_a_process(monkeypatch: pytest.MonkeyPatch, seen: int, local_rank: int, gpu: int | None) -> None:
    """Its own number, or the only one that it sees: srun --gpus-per-task=1 shows each process its own."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    place = launchers.Launch(rank=local_rank, world_size=8, local_rank=local_rank, local_size=8)
    if gpu is None:
        with pytest.raises(ConfigError, match=rf"process {local_rank} of this machine, .* sees {seen} GPUs: start at"):
            launch.gpu(place)
    else:
        assert launch.gpu(place) == gpu
