"""Every variant of the model trains as Hugging Face's own class does, under each engine and along each axis."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.distributed import many, ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tests.distributed.recipe import RECIPE
from tests.distributed.test_curves import LOSS, NORM
from tests.distributed.variants import VARIANTS

if TYPE_CHECKING:
    from tests.distributed.reference import Curve

FUSED = (
    *(Mode(sharding=sharding) for sharding in ("zero0", "zero1", "zero2", "zero3", "zero3-offload")),
    *(Mode(sharding=sharding) for sharding in ("fsdp", "fsdp-grad-op")),
    Mode(sharding="zero1", tp=2, dp=1),
    Mode(sharding="fsdp", tp=2, sp=True, dp=1),
    Mode(sharding="zero0", pp=2, dp=1),
    Mode(sharding="zero1", pp=2, dp=1),
    Mode(sharding="zero2", pp=2, dp=1),
    Mode(sharding="fsdp", pp=2, vpp=2, dp=1),
    Mode(sharding="zero1", cp=2, dp=1),
)
LOCAL = (
    Mode(sharding="zero1"),
    Mode(sharding="zero3"),
    Mode(sharding="fsdp", tp=2, sp=True, dp=1),
    Mode(sharding="zero2", tp=2, dp=1),
    Mode(sharding="zero1", pp=2, vpp=2, dp=1),
    Mode(sharding="fsdp", pp=2, dp=1),
)
