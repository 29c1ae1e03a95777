"""What every row of a benchmark trains, and what is known of a row once it has run.

Neighbours: `floor`, `peers` and `ours` measure, `report` compares. Both records go between processes as JSON.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tinyllama_mcore.config import recipes
from tinyllama_mcore.config.parameters import known_vocab_size
from tinyllama_mcore.config.schema import ModelConfig, OptimizerConfig

if TYPE_CHECKING:
    import torch

GIB = 2**30
ASSUMED_VOCABULARY = 2048
"""Pieces where the recipe leaves the number open: those of the trainer's built-in corpus."""
MIXED = "bf16, fp32 masters, fp32 accumulation"
ALL_BF16 = "all bf16"
FLOAT8 = "float8 products, all else bf16"
FLOAT8_MIXED = f"float8 products, {MIXED}"
FP32 = "fp32"
"""Precisions. Rows are compared with peers of their own, but for `YARDSTICK`."""
YARDSTICK = {FLOAT8_MIXED: FLOAT8}
"""Precision -> that of the peers which it is compared with: no peer keeps fp32 masters beside float8 products."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The same for every row."""

    recipe: str
    """Name of the recipe that the trainer runs."""
    model: ModelConfig
    """Its architecture, with the vocabulary size known."""
    optimizer: OptimizerConfig
    """Its AdamW."""
    seq_length: int
    """Tokens of a sequence."""
    micro_batch_size: int
    """Sequences in one forward and backward pass of a GPU."""
    accumulation: int
    """Micro-batches of a GPU in an update."""
    warmup: int
    """Updates that are not timed."""
    updates: int
    """Timed updates; their median counts."""
    on_gpu: bool
    """Whether there is a GPU: bf16 and compiled then, fp32 and eager on a CPU."""

    @property
    def tokens_per_update(self) -> int:
        """Tokens of one GPU in an update."""
        return self.micro_batch_size * self.accumulation * self.seq_length

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        return known_vocab_size(self.model)

    @property
    def device(self) -> str:
        """Where a process computes, in torch's words; under a launcher the current CUDA device."""
        return "cuda" if self.on_gpu else "cpu"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row."""

    name: str
    kind: str
    """floor, ours or peer."""
    precision: str
    tokens_per_s: float | None = None
    """Tokens a second of one GPU, the median over the timed updates; None where nothing was measured."""
    peak_memory_gib: float | None = None
    """Most memory that torch had allocated on the GPU, or resident on a CPU; of the rank that holds most."""
    spread: float | None = None
    """(slowest - fastest) / median of the timed updates."""
    parts_ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds of an update of the floor, by part."""
    problem: str = ""
    """Why nothing was measured."""
    command: str = ""
    """What was run."""


def workload_of(recipe: str, *, on_gpu: bool, batch: tuple[int, int], timed: tuple[int, int]) -> Workload:
    """The workload of a recipe.

    Args:
        recipe: its name.
        on_gpu: whether there is a GPU.
        batch: sequences of a micro-batch, and micro-batches of an update.
        timed: updates before those that are timed, and those.
    """
    found = recipes.load(recipe)
    return Workload(
        recipe=recipe,
        model=replace(found.model, vocab_size=found.model.vocab_size or ASSUMED_VOCABULARY),
        optimizer=found.optimizer,
        seq_length=found.batch.seq_length,
        micro_batch_size=batch[0],
        accumulation=batch[1],
        warmup=timed[0],
        updates=timed[1],
        on_gpu=on_gpu,
    )


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """The median of `values`, and their range over it."""
    median = statistics.median(values)
    return median, (max(values) - min(values)) / median


def peak_memory_gib() -> float:
    """Most memory this process has held so far, in GiB: allocated on its GPU, or resident where there is none."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB  # Linux counts in KiB


def synchronize(device: torch.device | str) -> None:
    """Wait until the GPU has done what it was given; nothing on a CPU."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
