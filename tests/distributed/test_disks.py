"""Saving where the disk is really full or really read-only, small file systems in memory: root alone can mount them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import Job
from tests.distributed.layouts import Mode
from tests.distributed.test_stopping import iterations, wait_for
from tinyllama_mcore.checkpoint import layout, lock, selection
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import TRACKER
from tinyllama_mcore.hf.importing import import_hf
from tinyllama_mcore.training import outputs

pytestmark = pytest.mark.faults

ZERO1 = Mode(sharding="zero1")
Remount = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Remount]]:
    """A file system that takes one checkpoint of 3 MB and not two, and what mounts it anew with other options."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs root, to mount a file system")

    def remount(options: str) -> None:
        """Of another size; or "ro", read-only for all that is opened from then on, until "rw"."""
        on_top = {"ro": ["mount", "-o", "bind,ro", str(place)], "rw": ["umount"]}
        subprocess.run([*on_top.get(options, ["mount", "-o", f"remount,{options}"]), str(place)], check=True)

    yield place, remount
    while place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def flags_of(job: Job, home: Path, background: bool) -> list[str]:
    """The run of a job, saved on the small disk every 4 iterations."""
    where = ("--save", str(home / "disk" / "checkpoints"), "--metrics-file", str(home / "metrics.jsonl"))
    return [*job.argv, *where, "--save-interval", "4", *["--async-save"] * background]


def only_the_first_is_there(save: Path) -> None:
    """Whole to the last byte, and nothing of another."""
    assert sorted(path.name for path in save.iterdir()) == [
        lock.FILE,
        "iter_0000004",
        TRACKER,
        outputs.NOTE,
    ]
    assert selection.inspect(layout.find(save)) == []


def goes_on_to_the_same_numbers(job: Job, argv: list[str], home: Path) -> None:
    """From the first checkpoint to the end, as the run that met no fault."""
    output = ranks.pretrain(argv, world_size=2, logs=home / "logs")
    assert "iter_0000004, iteration 4" in output
    for name in ("iteration", "lm_loss", "grad_norm", "consumed_samples"):
        assert [r[name] for r in ranks.metrics(home / "metrics.jsonl")] == [r[name] for r in job.metrics]


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_fills_up(
    background: bool, job_of: Callable[[Mode], Job], disk: tuple[Path, Remount], tmp_path: Path
) -> None:
    """The second save does not fit: one message, exit code 1, the first as it was. With more room the run goes on."""
    argv = flags_of(job_of(ZERO1), tmp_path, background)
    assert ranks.run(2, ranks._pretrain, argv, logs=tmp_path / "logs") == [1, 1]
    said = (tmp_path / "logs" / "rank0.log").read_text()
    assert "iter_0000008 could not be written" in said
    assert "No space left on device" in said
    assert "Earlier checkpoints are untouched" in said
    assert "Traceback" not in said
    only_the_first_is_there(disk[0] / "checkpoints")
    disk[1]("size=64m")
    goes_on_to_the_same_numbers(job_of(ZERO1), argv, tmp_path)


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_becomes_read_only(
    background: bool, job_of: Callable[[Mode], Job], disk: tuple[Path, Remount], tmp_path: Path
) -> None:
    """Between two saves: one message, exit code 1; the next start is refused with 2 until it can be written again."""
    argv = flags_of(job_of(ZERO1), tmp_path, background)
    disk[1]("size=64m")
    job = ranks.start(2, ranks._pretrain, argv, logs=tmp_path / "logs")
    tracker = disk[0] / "checkpoints" / TRACKER
    wait_for(lambda: tracker.exists() and tracker.read_text().strip() == "4", "the first save")
    for rank in job:
        os.kill(rank.pid, signal.SIGSTOP)
    assert iterations(tmp_path) < 8
    disk[1]("ro")
    for rank in job:
        os.kill(rank.pid, signal.SIGCONT)
    for rank in job:
        rank.join(60)
    assert [rank.exitcode for rank in job] == [1, 1]
    said = (tmp_path / "logs" / "rank0.log").read_text()
    assert "iter_0000008 could not be written" in said
    assert "Read-only file system" in said
    assert "Traceback" not in said
    only_the_first_is_there(disk[0] / "checkpoints")
    assert ranks.run(2, ranks._pretrain, argv, logs=tmp_path / "logs") == [2, 2]
    assert "checkpoints: cannot be written; name a writable directory" in (tmp_path / "logs" / "rank0.log").read_text()
    disk[1]("rw")
    goes_on_to_the_same_numbers(job_of(ZERO1), argv, tmp_path)


def test_an_import_that_does_not_fit(
    job_of: Callable[[Mode], Job], corpus_tokenizer: Path, disk: tuple[Path, Remount], tmp_path: Path
) -> None:
    """One message, and nothing left of it."""
    from tinyllama_mcore.hf.export import ExportJob, export

    export(ExportJob(load=job_of(ZERO1).save, output=tmp_path / "hf", tokenizer_model=corpus_tokenizer, verify=False))
    disk[1]("size=512k")
    with pytest.raises(ConfigError, match=r"--output .*/run cannot be written: .*No space left on device"):
        import_hf(tmp_path / "hf", disk[0] / "run")
    assert list(disk[0].iterdir()) == []
