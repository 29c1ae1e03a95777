"""What a save removes and what it never touches, what one that is killed leaves, and what a failing removal costs."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.checkpoint.test_checkpoint import TENSORS, record
from tinyllama_mcore.checkpoint import layout, reader, selection, store, writer
from tinyllama_mcore.config import atomic
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import MANIFEST, TRACKER, holds_checkpoint, unfinished_checkpoints
from tinyllama_mcore.parallel.alone import job_of_one

pytestmark = pytest.mark.faults

Save = Callable[..., None]
OTHER = {key: tensor + 1 for key, tensor in TENSORS.items()}
"""Another state of the same iteration."""


@pytest.fixture(scope="module")
def group() -> Iterator[torch.distributed.ProcessGroup]:
    """Of one rank."""
    with job_of_one():
        yield torch.distributed.new_group(backend="gloo")


@pytest.fixture
def save(group: torch.distributed.ProcessGroup) -> Save:
    """Save and flush one iteration in a directory, as a run does."""

    def save(directory: Path, iteration: int, keep_latest: int = 0, *, skipped: int = 0, other: bool = False) -> None:
        manifest = record(iteration, skipped_in_a_row=skipped)
        mine = writer.commit(directory, OTHER if other else TENSORS, manifest, group)
        writer.flush(directory, manifest.state, mine, group, keep_latest=keep_latest)

    return save


def content(path: Path) -> dict[str, bytes]:
    """Every file below a path, by name."""
    files = [file for file in (path, *sorted(path.rglob("*"))) if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint holds, to the last byte verified."""
    opened = reader.CheckpointReader(folder)
    return {key: opened.tensor(key) for key in opened.keys()}  # noqa: SIM118


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether both hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@pytest.mark.parametrize("keep_latest", [0, 1])
def test_what_a_save_did_not_make_stays(keep_latest: int, save: Save, tmp_path: Path) -> None:
    """Copies, other programs' checkpoints, links and names that only begin alike; however many are kept."""
    home, outside = tmp_path / "home", tmp_path / "outside"
    save(home, 1)
    made = layout.folder(home, 1)
    for copy in ("iter_0000001.keep", "iter_0000001_backup", "iter_0000001.removed-not", "iter_1.removed", "iter_old"):
        shutil.copytree(made, home / copy)
    (home / "iter_0000500" / "mp_rank_00").mkdir(parents=True)
    (home / "iter_0000500" / "mp_rank_00" / "model_optim_rng.pt").write_text("Megatron-LM's")
    made.rename(outside)
    made.symlink_to(outside)
    (home / "iter_0000002.unfinished").symlink_to(outside)
    (home / "iter_0000003.removed").write_text("a file")
    before, there = content(tmp_path), {path.name for path in home.iterdir()}
    for iteration in (4, 5):
        save(home, iteration, keep_latest)
    assert {path.name for path in home.iterdir()} == there | {"iter_0000004", "iter_0000005"} - {
        "iter_0000004" if keep_latest else ""
    }
    after = content(tmp_path)
    assert [name for name in before if after[name] != before[name]] == [f"home/{TRACKER}"]


@pytest.mark.parametrize("stands", ["Megatron-LM's", "a link", "a file"])
def test_what_stands_where_a_save_goes_is_set_aside(stands: str, save: Save, tmp_path: Path) -> None:
    """And is never removed: it has the name of this iteration, and is not of this program."""
    home, outside = tmp_path / "home", tmp_path / "outside"
    place, aside = layout.folder(home, 4), home / "abandoned-iter_0000004"
    save(home, 4)
    place.rename(outside)
    if stands == "a file":
        place.write_text("kept")
    elif stands == "a link":
        place.symlink_to(outside)
    else:
        (place / "mp_rank_00").mkdir(parents=True)
        (place / "mp_rank_00" / "model_optim_rng.pt").write_text("kept")
    before = [place.is_symlink(), content(place), content(outside)]
    for iteration in (4, 5):
        save(home, iteration, 1)
    assert [aside.is_symlink(), content(aside), content(outside)] == before
    assert sorted(path.name for path in home.iterdir()) == [aside.name, "iter_0000005", TRACKER]


def test_what_a_killed_save_left_goes(save: Save, tmp_path: Path) -> None:
    """All of it, with the next save."""
    save(tmp_path, 1)
    for name in ("iter_0000002.unfinished", "iter_0000001.replaced", "iter_0000003.removed", "iter_0000003.removed.2"):
        shutil.copytree(layout.folder(tmp_path, 1), tmp_path / name)
    assert len(layout.unfinished(tmp_path)) == 4
    save(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000001", "iter_0000004", TRACKER]


@pytest.mark.parametrize("keep_latest", [1, 2])
def test_a_removal_that_fails_costs_nothing(
    keep_latest: int, save: Save, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EBUSY of older ones (an open file, over NFS): the new one stands, one line says so, and later they go."""
    for iteration in range(1, 4):
        save(tmp_path, iteration)
    rmtree, busy = shutil.rmtree, {layout.folder(tmp_path, n).stat().st_ino for n in (1, 2)}

    def failing(path: Path, **more: bool) -> None:
        if Path(path).exists() and Path(path).stat().st_ino in busy:
            raise OSError(16, "Device or resource busy", str(path))
        rmtree(path, **more)

    monkeypatch.setattr(shutil, "rmtree", failing)
    save(tmp_path, 4, keep_latest)
    assert layout.iterations(tmp_path) == [3, 4][-keep_latest:]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: could not remove the superseded ") and "Device or resource busy" in line
    assert ", and 1 more" in line
    save(tmp_path, 5, keep_latest)
    assert capfd.readouterr().err.count("\n") == 1
    monkeypatch.undo()
    save(tmp_path, 6, keep_latest)
    assert capfd.readouterr().err == ""
    assert [path.name for path in tmp_path.glob("iter_*.*")] == []
    assert (tmp_path / TRACKER).read_text() == "6\n"


def test_a_directory_that_cannot_be_flushed_is_no_fault() -> None:
    """EINVAL is what /proc, and some network file systems, say of a directory; of a file it is a fault."""
    with pytest.raises(OSError, match="Invalid argument"):
        store.flush([Path("/proc/self/stat")])
    store.flush([Path("/proc")])


class Killed(BaseException):
    """The process ends here: nothing that comes after is done."""


def _killing(monkeypatch: pytest.MonkeyPatch, at: int, before: bool, exchanges: bool) -> None:
    """End the process at its `at`-th rename or exchange, counted from 0, before or after it."""
    count = itertools.count()

    def mortal(work: Callable) -> Callable:
        def renamed(*names: Path, **more: object) -> object:
            number = next(count)
            if number == at and before:
                raise Killed
            done = work(*names, **more)
            if number == at:
                raise Killed
            return done

        return renamed

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, mortal(getattr(os, name)))
    exchange = atomic.exchange if exchanges else lambda one, other: False
    monkeypatch.setattr(atomic, "exchange", mortal(exchange))


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_save_that_replaces_one_can_be_killed_at_any_rename(
    exchanges: bool, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two is found, whole, by whoever looks; nothing else is left by the next save, which loses neither."""
    found_both, kills = set(), 0
    for at, before in itertools.product(range(6), (True, False)):
        home = tmp_path / f"{at}-{before}"
        save(home, 1)
        with monkeypatch.context() as patch:
            _killing(patch, at, before, exchanges)
            try:
                save(home, 1, other=True)
            except Killed:
                kills += 1
        assert holds_checkpoint(str(home))
        found = tensors_of(layout.find(home))
        found_both.add(same(found, OTHER))
        assert same(found, OTHER) or same(found, TENSORS)
        save(home, 2, 2)
        assert sorted(path.name for path in home.iterdir()) == ["iter_0000001", "iter_0000002", TRACKER]
        assert same(tensors_of(layout.folder(home, 1)), found)
    assert found_both == {True, False} and kills >= 6


def test_the_step_that_exchanges_is_one(tmp_path: Path) -> None:
    """Where the file system has it; else, or where one is missing, nothing changes."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).touch()
    if not atomic.exchange(one, other):
        pytest.skip("this file system exchanges nothing")
    assert (one / "other").exists() and (other / "one").exists()
    with pytest.raises(FileNotFoundError):
        atomic.exchange(one, tmp_path / "none")


@pytest.mark.parametrize("there", [[], [1], [1, 2]])
def test_a_flush_that_fails_leaves_what_was_there(
    there: list[int], save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last flush: no checkpoint, one before it, or one of the same iteration; the tracker says the same."""
    for iteration in there:
        save(tmp_path, iteration)
    before, flush, times = content(tmp_path), store.flush, itertools.count()

    def failing(paths: list[Path]) -> None:
        if tmp_path in paths and next(times) == 1:  # after the tracker was written
            raise OSError(5, "Input/output error", str(tmp_path))
        flush(paths)

    monkeypatch.setattr(store, "flush", failing)
    with pytest.raises(writer.SaveFailed, match=r"iter_0000002 could not be written: .*Input/output error"):
        save(tmp_path, 2, other=True)
    assert content(tmp_path) == before
    assert holds_checkpoint(str(tmp_path)) == bool(there)


def test_what_was_left_does_not_stop_a_save(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save of this iteration was killed, and a file of it cannot be removed."""
    left = tmp_path / "iter_0000001.unfinished"
    left.mkdir()
    (left / "busy").touch()
    rmtree, number = shutil.rmtree, left.stat().st_ino

    def failing(path: Path, **more: bool) -> None:
        if Path(path).exists() and Path(path).stat().st_ino == number:
            if not more.get("ignore_errors"):
                raise OSError(16, "Device or resource busy", str(path))
        else:
            rmtree(path, **more)

    monkeypatch.setattr(shutil, "rmtree", failing)
    save(tmp_path, 1)
    assert same(tensors_of(layout.find(tmp_path)), TENSORS)


@pytest.mark.parametrize("keep_latest", [1, 2])
def test_a_streak_keeps_what_a_rollback_takes(keep_latest: int, save: Save, tmp_path: Path) -> None:
    """Saves during skipped updates leave the newest checkpoint of before; after the streak it goes as any other."""
    for iteration, skipped in ((100, 0), (105, 5), (110, 10), (115, 15)):
        save(tmp_path, iteration, keep_latest, skipped=skipped)
        newest = max(n for n in layout.iterations(tmp_path) if n <= iteration - skipped)
        assert newest == 100
        assert len(layout.iterations(tmp_path)) <= keep_latest + 1
    save(tmp_path, 120, keep_latest)
    assert layout.iterations(tmp_path) == [115, 120][-keep_latest:]


@pytest.mark.parametrize("left", [[], [2], [2, 3]])
def test_who_sets_checkpoints_aside_puts_the_tracker_right(left: list[int], save: Save, tmp_path: Path) -> None:
    """A run that ends before its first save is followed by one that starts, or resumes from what is left."""
    for iteration in (*left, 7, 8):
        save(tmp_path, iteration)
    selection.abandon_newer(tmp_path, 5 if left else -1)
    assert layout.iterations(tmp_path) == left
    assert holds_checkpoint(str(tmp_path)) == bool(left)
    assert (tmp_path / TRACKER).exists() == bool(left)
    if left:
        assert (tmp_path / TRACKER).read_text() == f"{left[-1]}\n"
    assert {path.name for path in tmp_path.glob("ab*")} == {"abandoned-iter_0000007", "abandoned-iter_0000008"}


@pytest.mark.parametrize("named", ["500", "release"])
def test_megatrons_directory_stays_as_it_is(named: str, save: Save, tmp_path: Path) -> None:
    """Its tracker too, under another name; before that, what is there is told as it is, and not as unfinished."""
    name = "iter_0000500" if named == "500" else named
    (tmp_path / name / "mp_rank_00").mkdir(parents=True)
    (tmp_path / TRACKER).write_text(named)
    told = f"{name} has no {MANIFEST}: another program wrote it" if named == "500" else f"its {TRACKER} points to none"
    with pytest.raises(ConfigError, match=told):
        layout.find(tmp_path)
    assert selection.abandon_newer(tmp_path, -1) == [tmp_path / f"abandoned-{TRACKER}"]  # --no-load
    save(tmp_path, 1, 1)
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {name, f"abandoned-{TRACKER}", TRACKER, "iter_0000001"}
    assert (tmp_path / f"abandoned-{TRACKER}").read_text() == named


def test_names_that_are_no_checkpoint_hold_none(tmp_path: Path) -> None:
    """A copy with its manifest, or what a save that was killed left, neither begins a run nor refuses one."""
    for name in ("iter_0000001_backup", "iter_0000001.keep", "iter_0000002.unfinished", "abandoned-iter_0000003"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text("{}")
    assert not holds_checkpoint(str(tmp_path))
    assert unfinished_checkpoints(str(tmp_path)) == ["iter_0000002.unfinished"]
    with pytest.raises(ConfigError, match=r"iter_0000002\.unfinished was never finished"):
        layout.find(tmp_path)


def test_no_checkpoint_that_is_old_enough_is_told(save: Save, tmp_path: Path) -> None:
    """To a rollback: what there is, is newer."""
    save(tmp_path, 7)
    with pytest.raises(ConfigError, match="holds no checkpoint of iteration 6 or before"):
        selection.agree(tmp_path, latest=6)
    assert selection.agree(tmp_path, latest=7)[1].state.iteration == 7
