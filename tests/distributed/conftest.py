"""The modes of the trainer, and one 20-iteration run of each, shared by the tests that look at it from many sides."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.recipe import RECIPE


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way of spreading the same run."""

    zero: int
    offload: bool = False
    tp: int = 1
    dp: int = 2
    sp: bool = False
    precision: str = "fp32"

    @property
    def world_size(self) -> int:
        """Processes."""
        return self.tp * self.dp

    def __str__(self) -> str:
        parts = [f"zero{self.zero}{'-offload' * self.offload}", f"tp{self.tp}{'-sp' * self.sp}", f"dp{self.dp}"]
        return "-".join([*parts, self.precision] if self.precision != "fp32" else parts)


SHARDINGS = ((0, False), (1, False), (2, False), (3, False), (3, True))
MODES = [
    *(Mode(zero=z, offload=o) for z, o in SHARDINGS),
    *(Mode(zero=z, offload=o, tp=2, dp=1) for z, o in SHARDINGS),
    *(Mode(zero=z, offload=o, tp=2, dp=1, sp=True) for z, o in SHARDINGS),
    *(Mode(zero=z, tp=2, dp=2, sp=True) for z in (1, 2, 3)),
]
"""Every sharding with TP 1, TP 2 and TP 2 with sequence parallel; and both axes at once where ZeRO cuts something."""


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
    """Write a JSON file and give its path as a flag's value."""
    path.write_text(json.dumps(value))
    return str(path)


def flags(mode: Mode, home: Path, corpus: list[str]) -> tuple[str, ...]:
    """The command line of a mode."""
    home.mkdir(parents=True, exist_ok=True)
    zero: dict[str, object] = {"stage": mode.zero, "reduce_bucket_size": 50_000}
    if mode.zero == 3:  # small enough that most parameters are partitioned, and some kept
        zero |= {"stage3_param_persistence_threshold": 100, "stage3_prefetch_bucket_size": 10_000}
    if mode.offload:
        zero |= {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    config = write_json(
        home / "ds.json",
        {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_clipping": "auto",
            "bf16": {"enabled": mode.precision == "bf16"},
            "zero_optimization": zero,
        },
    )
    recipe = write_json(home / "recipe.json", RECIPE)
    return (
        *("--deepspeed_config", config, "--recipe", recipe, "--data-path", *corpus, "--log-interval", "10"),
        *("--tensor-model-parallel-size", str(mode.tp), *(["--sequence-parallel"] * mode.sp)),
    )


@pytest.fixture(scope="session")
def job_of(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Callable[[Mode], Job]:
    """The 20-iteration run of a mode, saved at 10 and 20; made at most once."""
    home, done = tmp_path_factory.mktemp("jobs"), {}

    def job(mode: Mode) -> Job:
        if mode not in done:
            here = home / str(mode)
            made = Job(home=here, argv=flags(mode, here, corpus))
            where = ("--save", str(made.save), "--save-interval", "10", "--metrics-file", str(here / "metrics.jsonl"))
            ranks.pretrain([*made.argv, *where], world_size=mode.world_size, logs=here / "logs")
            done[mode] = made
        return done[mode]

    return job


@pytest.fixture(scope="session")
def reference(corpus: list[str]) -> list[tuple[float, float]]:
    """(loss, gradient norm before clipping) of each of the 20 iterations of the reference."""
    from tests.distributed.reference import reference_curve

    return reference_curve(corpus)
