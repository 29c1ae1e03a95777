"""A run that fails while a checkpoint is being written in the background waits for it, not for ever, and says so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.distributed import faults, ranks
from tests.distributed.conftest import flags, kept
from tests.distributed.layouts import Mode
from tinyllama_mcore.checkpoint import layout, selection

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(("seconds", "is_kept"), [(3.0, True), (60.0, False)])
def test_a_save_that_is_under_way_when_a_rank_fails(
    seconds: float, is_kept: bool, corpus: list[str], tmp_path: Path
) -> None:
    """Rank 1 fails an iteration after the save began: all of it is committed first, or the wait of a second is over."""
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), *kept(tmp_path), "--save-interval", "4", "--async-save"]
    begin = time.monotonic()
    codes = ranks.run(2, faults.pretrain_that_fails_during_a_save, argv, 1, 6, seconds, logs=tmp_path / "logs")
    assert time.monotonic() - begin < 55
    assert codes[1] == 70 and codes[0] != 0
    said = (tmp_path / "logs" / "rank1.log").read_text()
    assert "rank 1, ArithmeticError: a checkpoint is being written: waiting for it, " in said
    assert "ArithmeticError: of a library" in said
    save = tmp_path / "checkpoints"
    assert layout.iterations(save) == [4] * is_kept
    if is_kept:
        assert "rank 1, ArithmeticError: that checkpoint is written: the same command resumes from it" in said
        assert selection.inspect(layout.folder(save, 4)) == []
    else:
        assert "that checkpoint is lost (it took longer than 1 s); those before it are as they were" in said
