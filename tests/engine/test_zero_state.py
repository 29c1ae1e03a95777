"""DeepSpeed's stages hold what they are given, on three ranks: no weight of the model divides by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.layouts import Mode
from tests.engine import small, state_checks

MODES = [
    *(Mode(sharding=name, dp=3) for name in ("zero0", "zero1", "zero2", "zero3", "zero3-offload")),
    *(Mode(sharding=name, dp=3, precision="bf16") for name in ("zero1", "zero2", "zero3")),
]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_what_is_written_is_read(mode: Mode, tmp_path: Path) -> None:
    """Weights, both moments, and what the forward pass uses."""
    small.hold(state_checks.reads_what_was_written, mode, tmp_path)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_what_is_written_is_updated(mode: Mode, tmp_path: Path) -> None:
    """As torch's AdamW goes on from there."""
    small.hold(state_checks.updates_what_was_written, mode, tmp_path)
