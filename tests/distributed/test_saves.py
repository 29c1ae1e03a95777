"""A save fails on every rank where it fails on any, whatever it fails on; the next one works."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from tests.checkpoint.test_checkpoint import record
from tests.distributed import ranks
from tinyllama_mcore.checkpoint import layout, selection, store, tensor_file, writer
from tinyllama_mcore.config.errors import RunFailed
from tinyllama_mcore.parallel import launch

pytestmark = pytest.mark.faults

FAULTS: dict[str, tuple[object, str, int]] = {
    "writing": (tensor_file, "write", 1),
    "counting": (store, "elements", 0),
    "making the manifest": (writer, "to_text", 0),
    "flushing": (store, "_flush_one", 1),
    "pointing to it": (writer, "_conclude", 0),
}
"""What fails, and on which of two ranks."""


class Odd(Exception):
    """Nothing that anybody expects, as a library's own errors are."""


def _fails(*_: object, **__: object) -> object:
    raise Odd("of a library")


def _rank(directory: Path) -> int:
    """Every fault in turn, on both ranks; what is not as it should be ends the rank."""
    launch.start_process_group(launch.this_process())
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=20))
    rank = torch.distributed.get_rank()
    tensors = {("model.a", "model.b")[rank]: torch.full((12 if rank == 0 else 5,), float(rank))}

    def save(iteration: int) -> None:
        manifest = record(iteration)
        writer.flush(directory, manifest.state, writer.commit(directory, tensors, manifest, group), group)

    save(1)
    for module, name, victim in FAULTS.values():
        works: Callable = getattr(module, name)
        if rank == victim:
            setattr(module, name, _fails)
        try:
            save(2)
        except writer.SaveFailed as error:
            assert "of a library" in str(error), error
        else:
            raise AssertionError(f"{name} failed, and the save did not")
        setattr(module, name, works)
        if rank == 0:
            assert sorted(path.name for path in directory.glob("iter*")) == ["iter_0000001"], name
    save(3)
    assert layout.iterations(directory) == [1, 3] and selection.inspect(layout.find(directory)) == []
    return _renames_together(directory, rank)


def _renames_together(directory: Path, rank: int) -> int:
    """Also where checkpoints cannot be set aside: every rank is told."""
    set_aside = layout.set_aside

    def refused(path: Path) -> Path:
        raise PermissionError(1, os.strerror(1), str(path))

    layout.set_aside = refused
    with pytest.raises(RunFailed, match=r"newer than this run cannot be renamed: .*iter_0000003"):
        selection.abandon_newer(directory, 1)
    layout.set_aside = set_aside
    moved = selection.abandon_newer(directory, 1)
    assert [path.name for path in moved] == ["abandoned-iter_0000003"] * (rank == 0)
    return 0


def test_a_save_fails_on_every_rank(tmp_path: Path) -> None:
    """Within seconds, with the words of the one that knows; nothing of it is left, and what was there stays."""
    codes = ranks.run(2, _rank, tmp_path / "checkpoints", logs=tmp_path / "logs")
    assert codes == [0, 0], ranks._tails(tmp_path / "logs")
