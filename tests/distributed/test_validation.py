"""Validation by dataset means the same in every layout, with documents told apart and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode

LAYOUTS = (
    (Mode(sharding="zero1", dp=1), 4),
    (Mode(sharding="zero1", dp=2), 2),
    (Mode(sharding="zero1", dp=1, pp=2), 1),
    (Mode(sharding="fsdp", dp=2), 1),
)
"""With the micro-batch size of each: sequences come to ranks and micro-batches in other ways."""


@pytest.mark.parametrize("more", [[], ["--inter-document-masking"]], ids=["plain", "masked"])
def test_losses_by_dataset(more: list[str], corpus: list[str], tmp_path: Path) -> None:
    """After two iterations, of each of two datasets, to the digits that losses agree to."""
    found = []
    for number, (mode, micro_batch) in enumerate(LAYOUTS):
        home = tmp_path / str(number)
        argv = [*flags(mode, home, corpus), "--split", "80,20,0", "--eval-interval", "2", "--eval-iters", "2", *more]
        argv += ["--exit-interval", "2", "--micro-batch-size", str(micro_batch)]
        argv += ["--metrics-file", str(home / "metrics.jsonl")]
        ranks.pretrain(argv, world_size=mode.world_size, logs=home / "logs")
        (line,) = [line for line in (home / "metrics.jsonl").read_text().splitlines() if '"validation"' in line]
        found.append([entry["loss"] for entry in json.loads(line)["by_dataset"].values()])
    assert len(found[0]) == 2 and abs(found[0][0] - found[0][1]) > 1e-3
    for losses in found[1:]:
        assert losses == pytest.approx(found[0], abs=2e-6, rel=0)
