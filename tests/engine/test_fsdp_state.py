"""FSDP holds what it is given: on three ranks, among which no weight divides, and in two groups of two."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.layouts import Mode
from tests.engine import small, state_checks

MODES = [
    Mode(sharding="fsdp", dp=3),
    Mode(sharding="fsdp", dp=3, precision="bf16"),
    Mode(sharding="fsdp-grad-op", dp=2),
    Mode(sharding="fsdp-hybrid", dp=4),
]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_what_is_written_is_read(mode: Mode, tmp_path: Path) -> None:
    """Weights, both moments, and what the forward pass uses."""
    small.hold(state_checks.reads_what_was_written, mode, tmp_path)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_what_is_written_is_updated(mode: Mode, tmp_path: Path) -> None:
    """As torch's AdamW goes on from there."""
    small.hold(state_checks.updates_what_was_written, mode, tmp_path)
