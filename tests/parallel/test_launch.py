"""Every launcher says in its own words who a process is."""

from __future__ import annotations

import pytest

from tinyllama_mcore.config.schema import ConfigError
from tinyllama_mcore.parallel import launch


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}, (3, 8, 1)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1"}, (5, 16, 1)),
        ({}, (0, 1, 0)),
    ],
    ids=["torchrun under Slurm", "srun", "python"],
)
def test_place(environment: dict[str, str], place: tuple[int, int, int]) -> None:
    """Rank, world size, local rank; torchrun's variables win over Slurm's."""
    rank, world_size, local_rank = place
    assert launch.read(environment) == launch.Launch(rank=rank, world_size=world_size, local_rank=local_rank)


def test_several_processes_have_to_know_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun` alone: told how to export it, rather than torch's traceback."""
    for name in ("MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="export MASTER_ADDR"):
        launch.start_process_group(launch.Launch(rank=0, world_size=2, local_rank=0))
