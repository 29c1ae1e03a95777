"""One row of the table of rules.

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
