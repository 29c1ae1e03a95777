"""The 1.1B model on the GPUs of this machine: real jobs, and single ranks of jobs that are larger than the machine.

What was measured goes to runs/gpu/*.jsonl, one line a case; docs/evidence/ tells it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch

from tests.distributed import ranks

RESULTS = Path("runs/gpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train the 1.1B recipe."""

    config: str
    """Stem of a file in ds_configs/, or a JSON text."""
    flags: str = ""
    world: int = 1
    rank: int = 0
    """Which rank of the world is looked at, where only one is started."""

    def argv(self, home: Path) -> list[str]:
        """Its command line."""
        config = ranks.CHECKOUT / "ds_configs" / f"{self.config}.json"
        if self.config.startswith("{"):
            config = home / "ds.json"
            config.write_text(self.config)
        return ["--deepspeed_config", str(config), "--recipe", "tinyllama-1.1b", *self.flags.split()]


def tell(file: str, **measured: Any) -> None:  # noqa: ANN401  whatever JSON takes
    """Add a line to a file of results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{file}.jsonl").open("a") as results:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(json.dumps({**measured, "device": device}), file=results)


def train(case: Case, home: Path, *more: str) -> list[dict[str, Any]]:
    """Every rank of a case as a real job; its metrics."""
    argv = [*case.argv(home), "--metrics-file", str(home / "metrics.jsonl"), *more]
    codes = ranks.run(case.world, ranks._pretrain, argv, logs=home, timeout=300)
    assert codes == [0] * case.world, (home / "rank0.log").read_text()[-4000:]
    return ranks.metrics(home / "metrics.jsonl")


def _one_rank_of_many(argv: list[str], case: Case, out: Path) -> int:
    """Train as one rank of a world that is not there: collectives return at once, without data.

    What a rank allocates does not depend on what the others send, so its peak memory is that of the real job. Weights
    are zeros, which keeps the numbers finite and the start short.
    """
    place = {"RANK": case.rank, "WORLD_SIZE": case.world, "LOCAL_RANK": 0}
    os.environ.update({name: str(value) for name, value in place.items()})
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from tinyllama_mcore.engine import self_check
    from tinyllama_mcore.model import initialize
    from tinyllama_mcore.parallel import launch
    from tinyllama_mcore.pretrain import main
    from tinyllama_mcore.sampling.loader import BatchSource
    from tinyllama_mcore.training import metrics

    def start(place: launch.Launch, *_: float, **__: bool) -> None:
        launch.publish(place)
        torch.cuda.set_device(0)
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=case.rank, world_size=case.world)

    self_check._agree = lambda *_: None  # what the others hold cannot be read back
    launch.start_process_group = start
    initialize.initial_value = lambda parameter, model, seed: torch.zeros(parameter.shape)
    BatchSource._prepare = lambda self, first, last: self.samples.prepare(first, last)
    code = main(argv)
    out.write_text(json.dumps(metrics.peak_memory_gib()))
    return code


def peak_memory_gib(case: Case, home: Path) -> float:
    """`max_memory_allocated` of one rank of a world of any size, after two iterations."""
    argv = [*case.argv(home), "--exit-interval", "2"]
    codes = ranks.run(1, _one_rank_of_many, argv, case, home / "peak.json", logs=home, timeout=180)
    assert codes == [0], (home / "rank0.log").read_text()[-4000:]
    return json.loads((home / "peak.json").read_text())
