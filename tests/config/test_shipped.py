"""DeepSpeed JSONs by name: those of the package, behind whatever file the user has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.config.conftest import REPOSITORY
from tinyllama_mcore.config import cli
from tinyllama_mcore.config.deepspeed import shipped
from tinyllama_mcore.config.errors import ConfigError

LINK = REPOSITORY / "ds_configs"


def test_the_documented_directory_is_a_link_to_the_only_files() -> None:
    """`ds_configs/zero3.json` of a checkout and `zero3` are one file, and nothing else in the tree is like it."""
    assert LINK.is_symlink()
    assert not Path(LINK.readlink()).is_absolute()
    assert [str(path.resolve()) for path in sorted(LINK.glob("*.json"))] == [shipped.find(n) for n in shipped.names()]


@pytest.mark.parametrize("name", shipped.names())
def test_a_name_and_its_path_are_the_same_run(name: str) -> None:
    """But for how the file is called in messages."""
    flags = ("--recipe", "tinyllama-debug")
    by_name, by_path = (
        cli.parse(["--deepspeed_config", given, *flags], world_size=1, has_gpu=lambda: False).sharding
        for given in (name, str(LINK / f"{name}.json"))
    )
    assert (by_name.source, by_name.deepspeed) == (name, by_path.deepspeed)


def test_a_file_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory does not: it is no JSON."""
    monkeypatch.chdir(tmp_path)
    Path("zero3").mkdir()
    assert json.loads(Path(shipped.find("zero3")).read_text())["zero_optimization"]["stage"] == 3
    Path("zero1").write_text("{}")
    assert shipped.find("zero1") == "zero1"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("zero4", "no DeepSpeed JSON of this name comes with tinyllama_mcore; did you mean zero3?"),
        ("offload", "did you mean zero3_offload?"),
        ("x", "known: fsdp, zero0, zero1, zero2, zero3, zero3_offload"),
        ("ds_configs/zero3.json", "no such file; the JSON that comes with tinyllama_mcore is named zero3"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(
    given: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no such file is: outside a checkout."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        cli.parse(["--deepspeed_config", given], world_size=1, has_gpu=lambda: False)
    assert str(refused.value).startswith(f"{given}: no such file")
    assert says in str(refused.value)


def test_a_path_that_is_no_file_is_told_by_whoever_reads_it(tmp_path: Path) -> None:
    """What lies beside it is what it resembles."""
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"min\.json: no such file; did you mean .*mine\.json"):
        cli.parse(["--deepspeed_config", str(tmp_path / "min.json")], world_size=1, has_gpu=lambda: False)
