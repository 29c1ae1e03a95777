"""One row of the table of rules, and how a row spells numbers that would be legal.

Neighbours: `rules_recipe`, `rules_layout`, `rules_sharding`, `rules_files` and `rules_unused` hold the rows, `rules`
the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinyllama_mcore.config.schema import RunConfig


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row: a run is refused with `message` where `holds` is false."""

    name: str
    """What has to be so, in a few words."""
    holds: Callable[[RunConfig], bool]
    message: Callable[[RunConfig], str]
    """What was given and where, the rule, and the nearest legal value."""


def divisors(number: int) -> str:
    """Every divisor, for a message."""
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)


def nearest_multiples(number: int, unit: int) -> str:
    """The multiples of `unit` next to `number`, for a message."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"
