"""What a key of the DeepSpeed JSON may hold, and by how much it may move the numbers of a run.

Neighbour: `keys` gives each key a kind and an effect.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from tinyllama_mcore.config.nearest import nearest_multiples
from tinyllama_mcore.config.strict_json import Json


@dataclass(frozen=True, kw_only=True)
class Effect:
    """By how much a key moves the numbers of a run; tests/distributed/test_keys.py runs every key."""

    text: str
    """What it does to them, and why."""
    loss: float
    """Largest difference of a loss, in nats."""
    norm: float
    """Largest relative difference of a gradient norm."""
    state: float
    """Largest difference of a weight or a moment after four iterations at a learning rate of 1e-3."""


NOTHING = Effect(text="every bit is the same", loss=0, norm=0, state=0)
ORDER = Effect(text="sums are made in another order, in fp32", loss=2e-6, norm=1e-5, state=1e-5)
BF16_SUMS = Effect(text="gradients are summed in bf16", loss=1e-3, norm=1e-2, state=4e-3)
RECIPE = Effect(text="a number of the recipe: the run is that of a recipe that says the same", loss=0, norm=0, state=0)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a value may be."""

    text: str
    """For messages: "... must be {text}"."""
    test: Callable[[Json], bool]
    nearest: Callable[[Json], str] = lambda value: ""
    """The legal values next to one that is not, for messages; empty where `text` says it all."""


def _number(value: Json) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def one_of(*values: Json) -> Kind:
    """One of these values and no other; 1 is not true."""
    spelled = " or ".join("null" if v is None else str(v).lower() if isinstance(v, bool) else f'"{v}"' for v in values)
    return Kind(text=spelled, test=lambda value: any(value is v or (isinstance(v, str) and value == v) for v in values))


BOOL = Kind(text="true or false", test=lambda value: isinstance(value, bool))
INT = Kind(text="a whole number, at least 0", test=lambda value: _number(value) and value >= 0 and value == int(value))
COUNT = Kind(
    text="a whole number, at least 1",
    test=lambda value: INT.test(value) and value >= 1,
    nearest=lambda value: str(max(1, round(value))) if _number(value) else "",
)
COUNT_OR_NULL = replace(COUNT, text=f"null or {COUNT.text}", test=lambda value: value is None or COUNT.test(value))
EVEN = Kind(  # stage_1_and_2.py takes multiples of `nccl_start_alignment_factor` (DeepSpeed 0.19.8)
    text="an even whole number, at least 2",
    test=lambda value: COUNT.test(value) and value % 2 == 0,
    nearest=lambda value: nearest_multiples(max(1, int(value)), 2) if _number(value) else "",
)
FACTOR = Kind(  # DeepSpeed divides by it
    text="a number above 0",
    test=lambda value: _number(value) and value > 0,
    nearest=lambda value: "1.0",
)
NUMBER = Kind(text="a number, at least 0", test=lambda value: _number(value) and value >= 0)
TEXT = Kind(text="a string", test=lambda value: isinstance(value, str))
BLOCK = Kind(text="an object {...}", test=lambda value: isinstance(value, dict))
BETAS = Kind(
    text="two numbers below 1, such as [0.9, 0.95]",
    test=lambda value: isinstance(value, list) and len(value) == 2 and all(NUMBER.test(v) and v < 1 for v in value),
)
LOG_LEVEL = Kind(
    text="null, debug, info, warning, error or critical",
    test=lambda value: value is None or value in ("debug", "info", "warning", "error", "critical"),
)
DTYPE = one_of("fp32", "bf16")
DEVICE = one_of("none", "cpu")
ON, OFF = one_of(True), one_of(False)
