"""Small real engines over gloo, for tests that look inside one: a run, its engine on this rank, and values for it."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.conftest import VOCABULARY
from tests.distributed import ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tinyllama_mcore.config import cli
from tinyllama_mcore.config.rules.model import with_vocab_size
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.sampling.loader import TokenBatch

SCALES = {"model": 0.02, "exp_avg": 1e-3, "exp_avg_sq": 1e-6}
"""Of the values by kind; second moments are positive."""


@dataclass(kw_only=True)
class Small:
    """One rank's engine, and what it is made of."""

    run: RunConfig
    mesh: object
    model: torch.nn.Module
    engine: object
    shapes: dict[str, torch.Size]
    """Of every parameter, before anything is sharded."""

    def lookup(self, kind: str, name: str) -> torch.Tensor:
        """A value of its own for each tensor: the same on every rank."""
        draw = torch.Generator().manual_seed(zlib.crc32(f"{kind} {name}".encode()))
        value = torch.randn(self.shapes[name], generator=draw) * SCALES[kind]
        return value.abs() + 1e-8 if kind == "exp_avg_sq" else value

    def state(self) -> dict[tuple[str, str], torch.Tensor]:
        """A copy of all that the engine hands out. Collective."""
        return {(kind, name): tensor.clone() for kind in SCALES for name, tensor in self.engine.state(kind)}

    def batches(self) -> list[TokenBatch]:
        """The micro-batches of one iteration, other ones on each data-parallel rank."""
        draw = torch.Generator().manual_seed(self.mesh.data.rank)
        shape = (self.run.num_micro_batches, self.run.batch.micro_batch_size, self.run.batch.seq_length + 1)
        return [
            TokenBatch(tokens=tokens[:, :-1], labels=tokens[:, 1:])
            for tokens in torch.randint(0, VOCABULARY, shape, generator=draw)
        ]


def run_of(mode: Mode, home: Path) -> RunConfig:
    """The run of a mode over the small recipe, with two micro-batches an iteration."""
    argv = [*flags(mode, home, ["1.0", "no-data"]), "--global-batch-size", str(2 * mode.micro_batch_size * mode.dp)]
    run = cli.parse(argv, world_size=mode.world_size, has_gpu=lambda: False)
    return with_vocab_size(run, VOCABULARY, "of the test")


def build(run: RunConfig) -> Small:
    """The engine on this rank, without weights. Collective."""
    from tinyllama_mcore.model import gpt
    from tinyllama_mcore.parallel import launch, mesh
    from tinyllama_mcore.run import build_engine

    launch.start_process_group(launch.this_process())
    axes = mesh.build(run.layout, run.seed)
    model = gpt.build(run, axes)
    shapes = {name: parameter.shape for name, parameter in model.named_tensors()}
    return Small(run=run, mesh=axes, model=model, engine=build_engine(run, axes, model), shapes=shapes)


def _held(function: Callable[[RunConfig], None], run: RunConfig) -> None:
    """The function, and a wait for the other ranks: the first one holds the store that they still connect by."""
    function(run)
    torch.distributed.barrier()


def hold(function: Callable[..., None], mode: Mode, home: Path, **changes: object) -> None:
    """Run `function(run)` on every rank of a mode: what it asserts has to hold on each of them."""
    run = dataclasses.replace(run_of(mode, home), **changes)
    codes = ranks.run(mode.world_size, _held, function, run, logs=home / "logs")
    assert codes == [0] * mode.world_size, ranks._tails(home / "logs")
