"""Two jobs on one --save: the second is refused, whoever comes after the first is not, however that one ended."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.distributed import faults, ranks
from tests.distributed.conftest import flags, kept
from tests.distributed.layouts import Mode
from tests.distributed.test_stopping import iterations, wait_for
from tinyllama_mcore.checkpoint import layout, selection
from tinyllama_mcore.config.errors import ConfigError

pytestmark = pytest.mark.faults


def test_the_second_job_is_refused(corpus: list[str], tmp_path: Path) -> None:
    """Exit code 2 on every rank, one message, before it trains; the first trains on; after its kill all is free."""
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), "--save", str(tmp_path / "checkpoints")]
    argv += ["--train-iters", "100000"]
    endless = [*argv, "--save-interval", "2", "--metrics-file", str(tmp_path / "metrics.jsonl")]
    first = ranks.start(2, ranks._pretrain, endless, logs=tmp_path / "first")
    wait_for(lambda: iterations(tmp_path) > 3, "training", 120)
    assert ranks.run(2, faults.pretrain_in_a_hurry, argv, logs=tmp_path / "second") == [2, 2]
    said = (tmp_path / "second" / "rank0.log").read_text()
    assert said.count("error: ") == 1
    assert f"is in use by process {first[0].pid} on " in said
    assert "Traceback" not in said + (tmp_path / "second" / "rank1.log").read_text()
    assert "iteration  " not in said
    now = iterations(tmp_path)
    wait_for(lambda: iterations(tmp_path) > now, "the first trains on")
    for rank in first:
        rank.kill()
    argv = [*argv, "--exit-interval", "1"]
    assert ranks.run(2, faults.pretrain_in_a_hurry, argv, logs=tmp_path / "third") == [0, 0]
    assert selection.inspect(layout.find(tmp_path / "checkpoints")) == []


def test_a_job_that_is_leaving_is_waited_for(corpus: list[str], tmp_path: Path) -> None:
    """A scheduler starts the next one before the last one's ranks are gone."""
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), *kept(tmp_path)]
    first = ranks.start(2, ranks._pretrain, [*argv, "--train-iters", "100000"], logs=tmp_path / "first")
    wait_for(lambda: iterations(tmp_path) > 3, "training", 120)
    second = ranks.start(2, ranks._pretrain, [*argv, "--no-load", "--exit-interval", "1"], logs=tmp_path / "second")
    said = tmp_path / "second" / "rank0.log"
    wait_for(lambda: said.exists() and "waiting      for process" in said.read_text(), "it waits", 120)
    os.kill(first[1].pid, signal.SIGTERM)
    for rank in (*first, *second):
        rank.join(120)
    assert [rank.exitcode for rank in (*first, *second)] == [0, 0, 0, 0]
    assert 1 in layout.iterations(tmp_path / "checkpoints")


@pytest.mark.parametrize("has_locks", [True, False])
def test_nothing_is_refused_where_there_are_no_locks(has_locks: bool, tmp_path: Path) -> None:
    """A file system without them is told of; a read-only directory is refused in words."""
    import errno

    from tinyllama_mcore.checkpoint import lock

    begin = time.monotonic()
    attempt = lock._attempt
    try:
        if not has_locks:
            lock._attempt = lambda descriptor: errno.ENOLCK
        os.close(lock._locked(tmp_path / "save"))
    finally:
        lock._attempt = attempt
    assert time.monotonic() - begin < lock.PATIENCE_S
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        lock._locked(tmp_path / "file")
