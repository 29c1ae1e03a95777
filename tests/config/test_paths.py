"""Names by which files are told apart, and which directories are checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.config.paths import (
    MANIFEST,
    finished_checkpoints,
    holds_checkpoint,
    told_apart,
    unwritable,
    unwritable_file,
)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([], []),
        (["data/text"], ["text"]),
        (["data/text", "data/code"], ["text", "code"]),
        (["a/text", "b/text", "a/code"], ["a/text", "b/text", "code"]),
        (["text", "b/text"], ["text", "b/text"]),
        (["/x/a/text", "/y/a/text"], ["x/a/text", "y/a/text"]),
    ],
)
def test_as_short_as_they_may_be(paths: list[str], names: list[str]) -> None:
    """The last part, and more where another path ends alike."""
    assert told_apart(paths) == names


def test_only_a_whole_name_is_a_checkpoint(tmp_path: Path) -> None:
    """What a user keeps beside, and what a save left, are none."""
    beside = ("iter_0000009.keep", "iter_0000008.unfinished", "iter_12", "iter_0000011 copy", "abandoned-iter_0000007")
    for name in beside:
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).touch()
    assert not holds_checkpoint(str(tmp_path))
    for iteration in (12345678, 4):
        (tmp_path / f"iter_{iteration:07d}").mkdir()
        (tmp_path / f"iter_{iteration:07d}" / MANIFEST).touch()
    assert holds_checkpoint(str(tmp_path))
    assert finished_checkpoints(tmp_path) == layout.iterations(tmp_path) == [4, 12345678]


def test_a_url_is_no_place_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of its name would be made beside the program; a colon elsewhere in a name is one."""
    monkeypatch.chdir(tmp_path)
    for url in ("s3://bucket/run", "gs://bucket", Path("s3://bucket/run"), Path("hf://x").absolute()):
        assert "is a URL" in (unwritable(url) or "")
        assert "is a URL" in (unwritable_file(Path(url) / "page.html") or "")
    assert unwritable(tmp_path / "run:1" / "a:b") is None
    assert list(tmp_path.iterdir()) == []
