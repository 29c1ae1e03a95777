"""This trainer's rows: the command that a user would type, checked before anything is measured, and what it measured.

Neighbour: `rows` runs the command as a process.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from tinyllama_mcore.benchmarking.workload import FP32, Measurement, Workload, median_and_spread
from tinyllama_mcore.config import cli, flags, metrics_lines
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.schema import RunConfig

PROGRAM = ("-m", "tinyllama_mcore", "pretrain")
"""The trainer, after `torchrun`."""
GIVEN = (
    "recipe",
    "seq_length",
    "micro_batch_size",
    "global_batch_size",
    "train_iters",
    "exit_interval",
    "metrics_file",
    "profile",
    "profile_dir",
)
"""Flags of the trainer that the workload gives."""
CUTS = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
"""Flags that put several GPUs to one micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Ours:
    """One row of this trainer."""

    words: tuple[str, ...]
    """The DeepSpeed JSON, then flags of the trainer."""
    profile: Path | None
    """Directory that an update is profiled into, one that is not timed; None: none is."""

    @property
    def name(self) -> str:
        """In the table."""
        return " ".join(("ours,", Path(self.words[0]).name, *self.words[1:]))


def rows_of(configs: list[str], profiles: Path | None) -> list[Ours]:
    """The rows that --config asks for; profiles go to that directory.

    Raises:
        ConfigError: two rows are the same, or one names no JSON.
    """
    words = [tuple(shlex.split(config)) for config in configs]
    for index, (config, each) in enumerate(zip(configs, words, strict=True)):
        if not each or each[0].startswith("-"):
            raise ConfigError(f"--config {config!r} must begin with a DeepSpeed JSON, such as zero1")
        if each in words[:index]:
            raise ConfigError(f"--config {config!r} is given twice; keep one of the two")
    return [
        Ours(words=each, profile=None if profiles is None else profiles / f"profile_{index}_{Path(each[0]).stem}")
        for index, each in enumerate(words)
    ]


def trainer_flags(ours: Ours, workload: Workload, processes: int, metrics: Path) -> list[str]:
    """The trainer's arguments: what the row says and what the workload says.

    Raises:
        ConfigError: the row gives what the workload gives, or a flag is wrong.
    """
    argv = ["--deepspeed_config", *ours.words]
    given = flags.read(argv)
    for name in GIVEN:
        if getattr(given, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"--config {' '.join(ours.words)!r}: {flag} is the same for every row; leave it out")
    ranks_a_batch = math.prod(getattr(given, name) or 1 for name in CUTS)
    sequences = workload.micro_batch_size * workload.accumulation * max(1, processes // ranks_a_batch)
    last = workload.warmup + workload.updates + (ours.profile is not None)
    profile = () if ours.profile is None else ("--profile", f"{last}:{last}", "--profile-dir", str(ours.profile))
    return [
        *argv,
        *("--recipe", workload.recipe),
        *("--micro-batch-size", str(workload.micro_batch_size)),
        *("--global-batch-size", str(sequences)),
        *("--exit-interval", str(last)),
        *("--metrics-file", str(metrics)),
        *profile,
    ]


def check(ours: Ours, workload: Workload, processes: int) -> RunConfig:
    """The run of this row, as the trainer itself would judge it.

    Raises:
        ConfigError: it would refuse it.
    """
    argv = trainer_flags(ours, workload, processes, Path("metrics.jsonl"))
    run = cli.parse(argv, world_size=processes, has_gpu=lambda: workload.on_gpu)
    legality.check(run, has_gpu=lambda: workload.on_gpu)
    return run


def row(ours: Ours, run: RunConfig) -> Measurement:
    """The row before anything is measured."""
    sharding = run.sharding
    mixed = f"{sharding.precision}, fp32 masters, {sharding.grad_accum_dtype} accumulation"
    if run.float8.recipe is not None:
        mixed = f"float8 products, {mixed}"
    return Measurement(name=ours.name, kind="ours", precision=FP32 if sharding.precision == "fp32" else mixed)


def command(ours: Ours, workload: Workload, processes: int, metrics: Path) -> list[str]:
    """What torchrun starts: the trainer."""
    return [*PROGRAM, *trainer_flags(ours, workload, processes, metrics)]


def result(before: Measurement, workload: Workload, metrics: Path) -> Measurement:
    """The row with what the run's own metrics file says.

    Raises:
        ConfigError: the file holds too few updates.
    """
    text = metrics.read_text(encoding="utf-8") if metrics.is_file() else ""
    records = metrics_lines.steps(text)
    timed = records[workload.warmup : workload.warmup + workload.updates]
    if len(timed) < workload.updates:
        raise ConfigError(f"{metrics} holds {len(records)} updates, not {workload.warmup + workload.updates}")
    median, spread = median_and_spread([record["tokens_per_s_per_gpu"] for record in timed])
    return replace(before, tokens_per_s=median, spread=spread, peak_memory_gib=timed[-1]["peak_memory_gib"])
