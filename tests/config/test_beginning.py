"""Where a run begins, asked of one that was made in Python; tests/config/test_cli.py asks the same of command lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.config.conftest import REPOSITORY
from tinyllama_mcore.config.beginning import begun
from tinyllama_mcore.config.compose import compose
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import MANIFEST
from tinyllama_mcore.config.schema import RunConfig

ZERO1 = str(REPOSITORY / "ds_configs/zero1.json")


def of(**checkpoint: Any) -> RunConfig:  # noqa: ANN401
    """A run that keeps its checkpoints so."""
    return compose("tinyllama-debug", ZERO1, checkpoint=checkpoint)


def saved(directory: Path, iteration: int) -> str:
    """A directory that holds a checkpoint."""
    folder = directory / f"iter_{iteration:07d}"
    folder.mkdir(parents=True)
    (folder / MANIFEST).touch()
    return str(directory)


def test_a_program_that_is_started_again_resumes(tmp_path: Path) -> None:
    """Its own checkpoints come before those that it began with; the answer does not change what is asked again."""
    save, other = str(tmp_path / "save"), saved(tmp_path / "other", 40)
    new, branch = of(save=save), of(save=save, load=other, iteration=40)
    assert begun(new) == new
    assert begun(branch) == branch
    saved(tmp_path / "save", 50)
    for run, told in ((new, "resuming from it"), (branch, f"and not from --load {other} --iteration 40")):
        resumed = begun(run)
        assert (resumed.checkpoint.load, resumed.checkpoint.iteration) == (save, None)
        assert len(resumed.notes) == 1 and told in resumed.notes[0]
        assert begun(resumed) == resumed
    assert begun(of(save=save, iteration=50)).checkpoint.iteration == 50
    from_zero = of(save=save, no_load=True)
    assert begun(from_zero) == from_zero


def test_an_unfinished_checkpoint_is_told_once(tmp_path: Path) -> None:
    """A start from iteration 0 beside one, asked twice as a command line does."""
    (tmp_path / "iter_0000010").mkdir()
    run = begun(begun(of(save=str(tmp_path))))
    assert run.checkpoint.load is None
    assert len(run.notes) == 1 and "iter_0000010 was never finished" in run.notes[0]


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"load": "a", "no_load": True, "save": "b"}, "--load a and --no-load contradict each other"),
        ({"no_load": True}, "--no-load does nothing here, because no --save names a checkpoint"),
        ({"iteration": 3}, "--iteration 3 names a checkpoint, but the run resumes from none"),
        ({"iteration": 3, "save": "nowhere"}, "--iteration 3 names a checkpoint, but the run resumes from none"),
    ],
)
def test_what_contradicts_is_refused(checkpoint: dict[str, Any], message: str) -> None:
    """In the words of the command line."""
    with pytest.raises(ConfigError, match=message):
        begun(of(**checkpoint))
