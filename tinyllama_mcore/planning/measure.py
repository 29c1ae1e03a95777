"""Corrects a row of the table of GPUs until the planner predicts the speed of a few short runs on this machine.

The runs are the commands that a plan prints. Neighbours: `gpus` has the rows, `throughput` the predictions.
"""

from __future__ import annotations

import math
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tinyllama_mcore.config import metrics_lines, packages
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.planning import command, memory, throughput
from tinyllama_mcore.planning.gpus import GIB, Gpu
from tinyllama_mcore.planning.request import Request, run_of

CONFIG = "zero1"
"""JSON of every run: the engine that waits least for anything but what is to be measured."""
MICRO_BATCHES = (8, 4, 2, 1)
"""The first that fits is taken."""
WARM_UP, COUNTED = 5, 10
"""Iterations before those whose median is taken, and how many those are."""
FURTHEST = 32.0
"""Times that a figure may be from its data sheet."""
ROUNDS, HALVINGS = 8, 40
"""Rounds in which each figure is corrected while the others stand, and halvings of its interval."""

Trainer = Callable[[RunConfig], float]
"""Trains for a while and returns tokens per second and GPU."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A short run, and the figures of a GPU that decide its speed."""

    tells: str
    flags: tuple[str, ...]
    scaled: Callable[[Gpu, float], Gpu]
    """The GPU with those figures times as fast."""
    world_size: int = 1


PROBES = (
    Probe(
        tells="host",
        flags=("--seq-length", "256", "--micro-batch-size", "1", "--no-cuda-graph"),  # which would hide the host
        scaled=lambda gpu, times: replace(gpu, host=gpu.host * times),
    ),
    Probe(
        tells="products and memory",
        flags=("--micro-batch-size", "{largest}"),
        scaled=lambda gpu, times: replace(
            gpu, bf16_flops=gpu.bf16_flops * times, fp32_flops=gpu.fp32_flops * times, hbm=gpu.hbm * times
        ),
    ),
    Probe(
        tells="nvlink",
        flags=("--micro-batch-size", "{largest}", "--tensor-model-parallel-size", "2", "--sequence-parallel"),
        scaled=lambda gpu, times: replace(gpu, nvlink=gpu.nvlink * times),
        world_size=2,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What torch reports of the GPUs here."""

    name: str
    memory: float
    """Bytes of each."""
    gpus: int


def machine() -> Machine:
    """This machine.

    Raises:
        ConfigError: torch is not installed, or finds no GPU.
    """
    packages.require("torch")
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("--measure needs a GPU, and torch finds none here; leave it out to plan by the data sheet")
    first = torch.cuda.get_device_properties(0)
    return Machine(name=first.name, memory=first.total_memory, gpus=torch.cuda.device_count())


def train(run: RunConfig) -> float:
    """Tokens per second and GPU of the run's own command; what it prints is seen.

    Raises:
        ConfigError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        words = shlex.split(command.launch(run))[1:]
        more = ("--exit-interval", str(WARM_UP + COUNTED), "--metrics-file", str(metrics))
        done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words, *more])
        if done.returncode:
            raise ConfigError(f"--measure: exit code {done.returncode} of {command.launch(run)}; its output is above")
        records = metrics_lines.steps(metrics.read_text())
    return statistics.median(record["tokens_per_s_per_gpu"] for record in records[WARM_UP:])


def measure(recipe: str, sheet: Gpu, here: Machine, trainer: Trainer) -> tuple[Gpu, list[str]]:
    """The row `sheet` as this machine is, and lines that say how it was corrected.

    Args:
        recipe: what is trained.
        sheet: the row that is corrected. What no run here tells stays: links to other nodes, and to other GPUs where
            there is only one.
        here: the machine.
        trainer: how runs are made.

    Raises:
        ConfigError: the recipe does not fit the GPU, or a run failed.
    """
    gpu = replace(sheet, name=here.name, memory=here.memory)
    runs = [(probe, _run(probe, recipe, gpu)) for probe in PROBES if probe.world_size <= here.gpus]
    measured = [(probe, run, trainer(run)) for probe, run in runs]
    for _ in range(ROUNDS):
        for probe, run, speed in measured:
            gpu = probe.scaled(gpu, _times(probe, run, speed, gpu))
    gpu = replace(
        gpu,
        host=_rounded(gpu.host),
        bf16_flops=_rounded(gpu.bf16_flops),
        fp32_flops=_rounded(gpu.fp32_flops),
        hbm=_rounded(gpu.hbm),
        nvlink=_rounded(gpu.nvlink),
    )
    return gpu, list(_told(sheet, gpu, measured))


def _run(probe: Probe, recipe: str, gpu: Gpu) -> RunConfig:
    """A probe's run, with the largest micro batch that the GPU holds."""
    asked = Request(recipe=recipe, world_size=probe.world_size, given=("--global-batch-size", "16"))
    for micro_batch in MICRO_BATCHES:
        flags = [flag.replace("{largest}", str(micro_batch)) for flag in probe.flags]
        run = run_of(asked, ["--deepspeed_config", CONFIG, *flags])
        need = memory.worst(run).total
        if need <= gpu.usable:
            return run
    room = f"needs {need / GIB:.1f} GiB, and a plan may fill {gpu.usable / GIB:.1f} of {gpu.name}"
    raise ConfigError(f"--measure trains {recipe}, which {room}; name a smaller --recipe")


def _times(probe: Probe, run: RunConfig, speed: float, gpu: Gpu) -> float:
    """How much faster the probe's figures have to be for the planner to say `speed`; 1 where none in reach does."""

    def predicted(times: float) -> float:
        return throughput.tokens_per_second(run, probe.scaled(gpu, times))

    low, high = 1 / FURTHEST, FURTHEST
    if not predicted(low) < speed < predicted(high):
        return 1.0
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if predicted(middle) < speed else (low, middle)
    return math.sqrt(low * high)


def _rounded(value: float) -> float:
    """To four digits: a measurement is no more exact."""
    return float(f"{value:.4g}")


def _told(sheet: Gpu, gpu: Gpu, measured: list[tuple[Probe, RunConfig, float]]) -> Iterator[str]:
    """Each run's speed, what the data sheet's row would have said, and what the corrected one says."""
    for probe, run, speed in measured:
        before, after = (throughput.tokens_per_second(run, each) for each in (sheet, gpu))
        left = "" if abs(after - speed) <= 0.01 * speed else "; no correction in range fits, so the row is unchanged"
        predicted = f"predicted for {sheet.name}: {before:,.0f}"
        yield f"measured     {speed:,.0f} tokens/s/GPU, limited by {probe.tells}; {predicted}{left}"
