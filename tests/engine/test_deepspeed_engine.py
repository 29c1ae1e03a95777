"""What DeepSpeed did with an update is what the engine says that it did."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest

from tests.distributed.layouts import Mode
from tests.engine import small
from tinyllama_mcore.config.schema import RunConfig

MODES = [
    Mode(sharding="zero1", dp=1),
    Mode(sharding="zero1", dp=1, precision="bf16"),
    Mode(sharding="zero2", dp=1),
    Mode(sharding="zero3", dp=1),
]
"""Each of DeepSpeed's optimizers: stage 1 in fp32 and in bf16 are two."""


def _other_name(run: RunConfig) -> None:
    from tinyllama_mcore.engine import deepspeed_engine

    built = small.build(run)
    built.engine.load_state(built.lookup, 0)
    assert built.engine.train_step(built.batches(), 1e-3, 0.0).skipped
    assert not built.engine.train_step(built.batches(), 1e-3, math.inf).skipped
    deepspeed_engine._no_norm_is_good = contextlib.nullcontext
    with pytest.raises(RuntimeError, match="made an update that it had to skip"):
        built.engine.train_step(built.batches(), 1e-3, 0.0)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_an_update_that_was_to_be_skipped_and_was_made_is_told(mode: Mode, tmp_path: Path) -> None:
    """A release of DeepSpeed's that asks by another name whether a norm is good does not train on."""
    small.hold(_other_name, mode, tmp_path)
