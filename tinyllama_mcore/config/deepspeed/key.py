"""The row of a key of the DeepSpeed JSON, and what "auto" in it is filled from.

Neighbours: `kinds` has values and effects, `keys` the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from enum import Enum

from tinyllama_mcore.config.deepspeed.kinds import NOTHING, Effect, Kind
from tinyllama_mcore.config.schema import BatchConfig, ModelConfig, OptimizerConfig
from tinyllama_mcore.config.strict_json import Json


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What a run has settled when "auto" is filled from it."""

    model: ModelConfig
    optimizer: OptimizerConfig
    batch: BatchConfig
    precision: str
    """"fp32" or "bf16"."""
    num_micro_batches: int
    """Micro-batches that a data-parallel rank accumulates in an iteration."""


class Reader(Enum):
    """Who acts on a key."""

    DEEPSPEED = "DeepSpeed is given it"
    ENGINE = "an engine of this package acts on it, and DeepSpeed is not told"
    LOGGERS = "this package's own loggers take it; DeepSpeed's know only the learning rate"


@dataclass(frozen=True)
class Key:
    """One key: taken with a kind, or refused with a reason."""

    path: str
    """Dotted, from the top level."""
    kind: Kind | None = None
    """What it may hold; None where it is refused. A BLOCK is checked key by key."""
    _: KW_ONLY
    effect: Effect = NOTHING
    """What values other than DeepSpeed's default do to the numbers of a run."""
    fixes: Callable[[Json], dict[str, Json]] | None = None
    """The run's values that a value of the key fixes, by field; the command line may say the same, not another."""
    auto: Callable[[Settled], Json] | None = None
    """What "auto" stands for; None where the key may not say "auto"."""
    always: bool = False
    """Whether the resolved JSON has it though the file does not: DeepSpeed would default it to something else."""
    with_fsdp: bool = False
    """Whether a top-level key may stand beside an `fsdp` block. DeepSpeed is not started then."""
    reader: Reader = Reader.DEEPSPEED
    """Who acts on a top-level key."""
    refused: str = ""
    """Why it is refused, and what to do instead. The value false, or a block with "enabled": false, is skipped."""

    @property
    def block(self) -> str:
        """Path of the block that it stands in; "" is the top level."""
        return self.path.rpartition(".")[0]
