"""One row of the table of rules, and the subjects that rows are about.

Neighbours: each file of this directory holds the rows of one subject, `legality` judges by all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from tinyllama_mcore.config.schema import RunConfig


class About(Enum):
    """What a rule judges."""

    MODEL = auto()
    """Sizes and switches of the recipe."""
    OPTIMIZER = auto()
    """AdamW's numbers and the learning-rate schedule."""
    LAYOUT = auto()
    """The axes of the mesh, and the batch over them."""
    SHARDING = auto()
    """ZeRO, FSDP and offload: the DeepSpeed JSON."""
    KERNELS = auto()
    """How a layer is computed: fused, compiled, recorded, and by which attention."""
    DATA = auto()
    """The blend, and the data that validate."""
    FILES = auto()
    """What has to be there, or can be written, on the machine that trains: a plan is made without."""
    MONITORS = auto()
    """The packages and directories of the JSON's monitors."""
    FLAGS = auto()
    """Flags that would do nothing."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row: a run is refused with `message` where `holds` is false."""

    name: str
    """What has to be so, in a few words."""
    about: About
    """What it judges; rows are picked by it."""
    holds: Callable[[RunConfig], bool]
    message: Callable[[RunConfig], str]
    """What was given and where, the rule, and the nearest legal value."""
