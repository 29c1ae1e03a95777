"""What the tests of level 0 share: a DeepSpeed JSON and a recipe written to disk, and a run made from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinyllama_mcore.config import cli
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.schema import RunConfig

REPOSITORY = Path(__file__).parents[2]


def with_gpu() -> bool:
    """A machine that has one."""
    return True


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[..., str]:
    """Write text, or an object as JSON, to a file and give its path."""

    def write(content: str | dict[str, Any], name: str = "ds.json") -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


@pytest.fixture
def make_run(write_json: Callable[..., str]) -> Callable[..., RunConfig]:
    """Parse a command line with a JSON (zero1.json's, or the one given), and judge the result unless told not to."""

    def make(
        *argv: str, ds: dict[str, Any] | None = None, world: int = 1, gpu: bool = True, judge: bool = True
    ) -> RunConfig:
        source = str(REPOSITORY / "ds_configs/zero1.json") if ds is None else write_json(ds)
        run = cli.parse(["--deepspeed_config", source, *argv], world_size=world, has_gpu=lambda: gpu)
        if judge:
            legality.check(run, has_gpu=lambda: gpu)
        return run

    return make
