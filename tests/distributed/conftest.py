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

    sharding: str
    """A row of SHARDINGS."""
    tp: int = 1
    sp: bool = False
    pp: int = 1
    vpp: int = 1
    cp: int = 1
    dp: int = 2
    precision: str = "fp32"

    @property
    def world_size(self) -> int:
        """Processes."""
        return self.tp * self.pp * self.cp * self.dp

    def __str__(self) -> str:
        axes = {"tp": self.tp, "pp": self.pp, "vpp": self.vpp, "cp": self.cp}
        cut = [f"{name}{size}{'-sp' * (self.sp and name == 'tp')}" for name, size in axes.items() if size > 1]
        return "-".join([self.sharding, *cut, f"dp{self.dp}", *[self.precision] * (self.precision != "fp32")])


SMALL_ZERO_3 = {"stage": 3, "stage3_param_persistence_threshold": 100, "stage3_prefetch_bucket_size": 10_000}
"""Small enough that most parameters are partitioned, and some kept."""
OFFLOADED = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
SHARDINGS: dict[str, dict[str, object]] = {
    **{f"zero{stage}": {"zero_optimization": {"stage": stage}} for stage in (0, 1, 2)},
    "zero3": {"zero_optimization": SMALL_ZERO_3},
    "zero3-offload": {"zero_optimization": SMALL_ZERO_3 | OFFLOADED},
    "fsdp": {"fsdp": {"sharding_strategy": "full_shard"}},
    "fsdp-grad-op": {"fsdp": {"sharding_strategy": "shard_grad_op"}},
    "fsdp-hybrid": {"fsdp": {"sharding_strategy": "hybrid_shard", "hybrid_shard_size": 2}},
    "fsdp-offload": {"fsdp": {"sharding_strategy": "full_shard", "cpu_offload": True}},
}
"""Name -> what the DeepSpeed JSON says of it."""
DEEPSPEED = ("zero0", "zero1", "zero2", "zero3", "zero3-offload")
MODES = [
    *(Mode(sharding=s) for s in DEEPSPEED),
    *(Mode(sharding=s, tp=2, dp=1) for s in DEEPSPEED),
    *(Mode(sharding=s, tp=2, dp=1, sp=True) for s in DEEPSPEED),
    *(Mode(sharding=f"zero{z}", tp=2, dp=2, sp=True) for z in (1, 2, 3)),
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
    sharding = {name: dict(block) for name, block in SHARDINGS[mode.sharding].items()}
    if "zero_optimization" in sharding:
        sharding["zero_optimization"]["reduce_bucket_size"] = 50_000
    bf16 = {"enabled": mode.precision == "bf16"}
    batch = {"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"}
    config = write_json(home / "ds.json", {**batch, "bf16": bf16, **sharding})
    recipe = write_json(home / "recipe.json", RECIPE)
    return (
        *("--deepspeed_config", config, "--recipe", recipe, "--data-path", *corpus, "--log-interval", "10"),
        *("--tensor-model-parallel-size", str(mode.tp), *(["--sequence-parallel"] * mode.sp)),
        *("--pipeline-model-parallel-size", str(mode.pp), "--virtual-pipeline-model-parallel-size", str(mode.vpp)),
        *("--context-parallel-size", str(mode.cp)),
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
