"""The layouts that the trainer has, and those of them that every run of the suite tries.

The whole product of shardings and axes takes a quarter of an hour (`make test-layouts`); the suite tries a covering
part of it, in which every pair of values meets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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

    @property
    def micro_batch_size(self) -> int:
        """Sequences: of the recipe's global batch each rank has two micro-batches, and of one pipeline four."""
        return 4 if self.dp == self.pp == 1 else 2

    @property
    def values(self) -> tuple[tuple[str, object], ...]:
        """What is chosen on each axis."""
        return (
            ("sharding", self.sharding),
            ("tensor", (self.tp, self.sp)),
            ("pipeline", (self.pp, self.vpp)),
            ("context", self.cp),
        )

    def __str__(self) -> str:
        axes = {"tp": self.tp, "pp": self.pp, "vpp": self.vpp, "cp": self.cp}
        cut = [f"{name}{size}{'-sp' * (self.sp and name == 'tp')}" for name, size in axes.items() if size > 1]
        return "-".join([self.sharding, *cut, f"dp{self.dp}", *[self.precision] * (self.precision != "fp32")])


SMALL_ZERO_3 = {"stage": 3, "stage3_param_persistence_threshold": 100, "stage3_prefetch_bucket_size": 10_000}
"""Small enough that most parameters are partitioned, and some kept."""
OFFLOADED = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
SHARDINGS: dict[str, dict[str, dict[str, object]]] = {
    **{f"zero{stage}": {"zero_optimization": {"stage": stage}} for stage in (0, 1, 2)},
    "zero3": {"zero_optimization": SMALL_ZERO_3},
    "zero3-offload": {"zero_optimization": SMALL_ZERO_3 | OFFLOADED},
    "fsdp": {"fsdp": {"sharding_strategy": "full_shard"}},
    "fsdp-grad-op": {"fsdp": {"sharding_strategy": "shard_grad_op"}},
    "fsdp-hybrid": {"fsdp": {"sharding_strategy": "hybrid_shard"}},
}
"""Name -> what the DeepSpeed JSON says of it. A hybrid shard is made of two groups of ranks.

FSDP's offload is not here: without a GPU it has nothing to move (tests/gpu has it)."""


def _product() -> Iterable[Mode]:
    """Every legal combination on up to four ranks, and one on eight."""
    tensors = ((1, False), (2, False), (2, True))
    pipelines = ((1, 1), (2, 1), (2, 2))
    for sharding, (tp, sp), (pp, vpp), cp in itertools.product(SHARDINGS, tensors, pipelines, (1, 2)):
        dp = 2 if tp * pp * cp <= 2 else 1
        fits = tp * pp * cp <= 4 and (sharding != "fsdp-hybrid" or dp * cp > 1)
        if fits and not (sharding.startswith("zero3") and pp > 1):  # refused: a rule of config/rules/sharding.py
            yield Mode(sharding=sharding, tp=tp, sp=sp, pp=pp, vpp=vpp, cp=cp, dp=dp)
    yield Mode(sharding="zero1", tp=2, sp=True, pp=2, dp=2)


def covering(modes: Sequence[Mode], meeting: int) -> list[Mode]:
    """Some of `modes` in which every combination of `meeting` values occurs that occurs in them all; greedy."""

    def combinations(mode: Mode) -> set[tuple]:
        return set(itertools.combinations(mode.values, meeting))

    left = set().union(*map(combinations, modes))
    chosen: list[Mode] = []
    while left:
        best = max(modes, key=lambda mode: len(combinations(mode) & left))
        chosen.append(best)
        left -= combinations(best)
    return chosen


PRODUCT = tuple(_product())
"""The whole product."""
MODES = [*covering(PRODUCT[:-1], 2), PRODUCT[-1]]
"""What every run of the suite tries: each pair of values meets; and the case on eight ranks."""
STATE_MODES = covering(MODES, 1)
"""Modes whose checkpoints are looked at closely, with BF16_MODES[:4]: each value occurs."""
BF16_MODES = [
    *(Mode(sharding=sharding, precision="bf16") for sharding in ("zero1", "zero2", "zero3", "fsdp")),
    Mode(sharding="zero1", tp=2, dp=1, precision="bf16"),
    Mode(sharding="zero1", tp=2, sp=True, dp=1, precision="bf16"),
    Mode(sharding="zero1", pp=2, dp=1, precision="bf16"),
    Mode(sharding="zero1", pp=2, vpp=2, dp=1, precision="bf16"),
    Mode(sharding="zero1", cp=2, dp=1, precision="bf16"),
]
