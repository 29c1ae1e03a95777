"""One run of each mode of `layouts`, shared by the tests that look at it from many sides."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import shared
from tests.distributed import ranks
from tests.distributed.layouts import BF16_MODES, SHARDINGS, STATE_MODES, Mode
from tests.distributed.recipe import BATCH, RECIPE, SAVED, SHOWN


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run on disk."""

    home: Path
    argv: tuple[str, ...]
    """The flags that say what is run; not where it is kept."""

    @property
    def save(self) -> Path:
        """Its checkpoints."""
        return self.home / "checkpoints"

    @property
    def metrics(self) -> list[dict]:
        """Its metrics file."""
        return ranks.metrics(self.home / "metrics.jsonl")


def write_json(path: Path, value: object) -> str:
    """Write a JSON file and give its path as a flag's value. One that is there already may be being read."""
    text = json.dumps(value)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return str(path)


def flags(mode: Mode, home: Path, corpus: list[str], given: Mapping[str, Any] = RECIPE) -> tuple[str, ...]:
    """The command line of a mode, with a recipe of the shape of `RECIPE`."""
    home.mkdir(parents=True, exist_ok=True)
    sharding = {name: dict(block) for name, block in SHARDINGS[mode.sharding].items()}
    if "zero_optimization" in sharding:
        sharding["zero_optimization"]["reduce_bucket_size"] = 50_000
    if mode.sharding == "fsdp-hybrid":
        sharding["fsdp"]["hybrid_shard_size"] = mode.dp * mode.cp // 2
    bf16 = {"enabled": mode.precision == "bf16"}
    batch = {"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"}
    config = write_json(home / "ds.json", {**batch, "bf16": bf16, **sharding})
    sizes = {**given["batch"], "micro_batch_size": mode.micro_batch_size}
    recipe = write_json(home / "recipe.json", {**given, "batch": sizes})
    return (
        *("--deepspeed_config", config, "--recipe", recipe, "--data-path", *corpus, "--log-interval", "10"),
        *("--tensor-model-parallel-size", str(mode.tp), *(["--sequence-parallel"] * mode.sp)),
        *("--pipeline-model-parallel-size", str(mode.pp), "--virtual-pipeline-model-parallel-size", str(mode.vpp)),
        *("--context-parallel-size", str(mode.cp)),
    )


def kept(home: Path) -> tuple[str, ...]:
    """Flags that say where a `Job` of this home is kept."""
    return ("--save", str(home / "checkpoints"), "--metrics-file", str(home / "metrics.jsonl"))


@pytest.fixture(scope="session")
def job_of(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Callable[[Mode], Job]:
    """The run of a mode, saved at `SAVED` and at its end; made at most once."""

    def job(mode: Mode) -> Job:
        with shared(tmp_path_factory, f"jobs/{mode}") as (home, empty):
            made = Job(home=home, argv=flags(mode, home, corpus))
            if empty:
                argv = [*made.argv, *kept(home), "--save-interval", str(SAVED)]
                ranks.pretrain(argv, world_size=mode.world_size, logs=home / "logs")
        return made

    return job


@pytest.fixture(scope="session")
def shown_of(
    job_of: Callable[[Mode], Job], tmp_path_factory: pytest.TempPathFactory, corpus: list[str]
) -> Callable[[Mode], tuple[Job, int]]:
    """The run of a mode that is only looked at, and its iterations: `SHOWN`, or all where others need the whole run."""

    def job(mode: Mode) -> tuple[Job, int]:
        if mode in (*STATE_MODES, *BF16_MODES[:4]):
            return job_of(mode), BATCH["train_iters"]
        with shared(tmp_path_factory, f"shown/{mode}") as (home, empty):
            made = Job(home=home, argv=flags(mode, home, corpus))
            if empty:
                argv = [*made.argv, *kept(home), "--exit-interval", str(SHOWN)]
                ranks.pretrain(argv, world_size=mode.world_size, logs=home / "logs")
        return made, SHOWN

    return job


@pytest.fixture(scope="session")
def reference(corpus: list[str]) -> list[tuple[float, float]]:
    """(loss, gradient norm before clipping) of each iteration of the reference."""
    from tests.distributed.reference import reference_curve

    return reference_curve(corpus)
