"""Which runs a CUDA graph can be recorded of. That it computes the same is shown on a GPU: tests/gpu/test_fused.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.distributed import ranks
from tests.distributed.layouts import Mode
from tests.engine.small import run_of
from tinyllama_mcore.config.schema import RunConfig

CASES = [
    (Mode(sharding="zero1", dp=1), False, True),
    (Mode(sharding="zero1", dp=2), False, True),
    (Mode(sharding="zero1", dp=1), True, False),
    (Mode(sharding="zero1", tp=2, dp=1), False, False),
    (Mode(sharding="zero1", pp=2, dp=1), False, False),
    (Mode(sharding="zero1", cp=2, dp=1), False, False),
]
"""Layout, whether documents are kept apart, and whether the passes can be recorded on a GPU."""


def _asks(run: RunConfig, expected: bool) -> None:
    from tinyllama_mcore.engine.cuda_graph import can_be_recorded
    from tinyllama_mcore.parallel import launch, mesh

    launch.start_process_group(launch.read())
    axes = mesh.build(run.layout, 0)
    on_gpu, on_cpu = (dataclasses.replace(axes, device=torch.device(device)) for device in ("cuda", "cpu"))
    assert can_be_recorded(run, on_gpu) == expected
    assert not can_be_recorded(run, on_cpu)
    torch.distributed.barrier()  # the first rank holds the store that the others still connect by


@pytest.mark.parametrize(("mode", "apart", "expected"), CASES, ids=str)
def test_what_can_be_recorded(mode: Mode, apart: bool, expected: bool, tmp_path: Path) -> None:
    """On a GPU, where no other rank takes part in the passes and every batch has one shape."""
    run = run_of(mode, tmp_path)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, inter_document_masking=apart))
    codes = ranks.run(mode.world_size, _asks, run, expected, logs=tmp_path / "logs")
    assert codes == [0] * mode.world_size, ranks._tails(tmp_path / "logs")
