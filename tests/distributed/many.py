"""Many short runs on one set of ranks: process groups are made once, the rest of each run is the trainer's own.

A run takes about half a second so. DeepSpeed keeps hooks and memory of every engine that it ever made, which slows the
next ones down, so a set of ranks is left after `RUNS` of them; runs of four ranks gain nothing by it.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.distributed import ranks

RUNS = 16
"""Runs of one set of ranks."""
TIMEOUT_S = 200
"""Of one set."""

Run = tuple[str, list[str]]
"""A name, and the command line of the trainer."""


def one_process_group() -> None:
    """Let the trainer start its process group once, and make the groups of each later mesh anew."""
    import torch
    from megatron.core import parallel_state

    from tinyllama_mcore.parallel import launch, mesh

    start, build = launch.start_process_group, mesh.build

    def start_once(*place: object, **more: object) -> None:
        if not torch.distributed.is_initialized():
            start(*place, **more)

    def build_anew(*layout: object) -> mesh.Mesh:
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        return build(*layout)

    launch.start_process_group, mesh.build = start_once, build_anew
    launch.leave_process_group = lambda: None


def _train(runs: Sequence[Run], done: Path) -> int:
    """Each run in turn; its name goes to `done` once it ended well. The first that does not ends the ranks."""
    import torch

    from tinyllama_mcore import pretrain

    one_process_group()
    for name, argv in runs:
        print(f"==== {name}", flush=True)
        try:
            code = pretrain.main(argv)
        except Exception:
            traceback.print_exc()
            code = 70
        if code:
            return code
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            with done.open("a") as file:
                print(json.dumps(name), file=file)
    return 0


def train(runs: Sequence[Run], home: Path) -> dict[str, str]:
    """Train every run on two ranks; what the ones that failed said last, by name."""
    assert len(dict(runs)) == len(runs), "two runs of one name"
    failed: dict[str, str] = {}
    left, attempt = list(runs), 0
    while left:
        attempt += 1
        now, logs, done = left[:RUNS], home / f"ranks{attempt}", home / f"done{attempt}"
        home.mkdir(parents=True, exist_ok=True)
        done.touch()
        ranks.run(2, _train, now, done, logs=logs, timeout=TIMEOUT_S)
        good = {json.loads(line) for line in done.read_text().splitlines()}
        bad = next((name for name, _ in now if name not in good), None)
        if bad is not None:
            failed[bad] = "\n".join(log.read_text()[-1500:] for log in sorted(logs.glob("rank*.log")))
        left = [run for run in left if run[0] not in good and run[0] != bad]
    return failed
