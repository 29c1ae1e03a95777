"""What the planner predicts, counted in real jobs: what a layer saves for its backward pass, what an engine holds."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllama_mcore.config import cli
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.schema import RunConfig

if TYPE_CHECKING:
    import torch

    from tinyllama_mcore.parallel.mesh import Mesh


def make_run(argv: Sequence[str], world_size: int) -> RunConfig:
    """A legal run of a small model, as a command line asks for it."""
    run = cli.parse(argv, world_size=world_size, has_gpu=lambda: True)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, vocab_size=run.model.vocab_size or 509))
    legality.check(run, has_gpu=lambda: True)
    return run


def saved(commands: Sequence[Sequence[str]], world_size: int, out: Path) -> int:
    """Write the bytes that one decoder layer saves, one number a command line, to `out` from the first rank."""
    from tinyllama_mcore.parallel import launch, mesh

    launch.start_process_group(launch.this_process())
    runs = [make_run(argv, world_size) for argv in commands]
    shared = mesh.build(runs[0].layout, 0)  # the axes are the same in all
    counted = [_block(run, shared, 2) - _block(run, shared, 1) for run in runs]  # what blocks share cancels
    if shared.is_first:
        out.write_text(json.dumps(counted))
    return 0


def _block(run: RunConfig, mesh: Mesh, layers: int) -> int:
    """Bytes of the distinct storages that a model of `layers` keeps for its backward pass, parameters aside."""
    import torch

    from tinyllama_mcore.config.parameters import known_vocab_size
    from tinyllama_mcore.model import gpt

    run = dataclasses.replace(run, model=dataclasses.replace(run.model, num_layers=layers))
    model = gpt.build(run, mesh).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shape = run.batch.micro_batch_size, run.batch.seq_length // run.layout.context_parallel_size
    tokens, saved = torch.randint(0, known_vocab_size(run.model), shape), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(0, tokens, labels=tokens)
    for tensor in _held_by_layers(loss):
        keep(tensor)
    return sum(size for size, _ in saved.values())


def _held_by_layers(loss: torch.Tensor) -> Iterator[torch.Tensor]:
    """Ends of the graphs inside fused layers, which autograd does not know: `ctx.graph` of `model.fused`."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
        heads, context = getattr(node, "graph", ((), None))
        yield from heads
        if context is not None:
            yield context


def held(argv: Sequence[str], world_size: int, out: Path) -> int:
    """Write the bytes of all tensors that are alive after an update, to `out` from the first rank."""
    import torch

    from tinyllama_mcore.engine import zero1
    from tinyllama_mcore.model import gpt, initialize
    from tinyllama_mcore.parallel import launch, mesh
    from tinyllama_mcore.run import build_engine
    from tinyllama_mcore.sampling.loader import TokenBatch

    run = make_run(argv, world_size)
    launch.start_process_group(launch.this_process())
    zero1._on_gpus = lambda _: True  # plans are made for GPUs, but this is none
    run = dataclasses.replace(run, cuda_graph=False)
    axes = mesh.build(run.layout, 0)
    before = _alive()
    engine = build_engine(run, axes, gpt.build(run, axes))
    engine.load_state(initialize.initial_shards(run.model, axes.tensor, 0), 0)
    tokens = torch.randint(0, run.model.vocab_size, (run.batch.micro_batch_size, run.batch.seq_length + 1))
    batch = TokenBatch(tokens=tokens[:, :-1], labels=tokens[:, 1:])
    engine.train_step([batch] * run.num_micro_batches, 1e-3, math.inf)
    if axes.is_first:
        out.write_text(json.dumps(_alive() - before))
    return 0


def _alive() -> int:
    """Bytes of the distinct storages of every tensor that Python knows."""
    import torch

    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"}
    return sum(storages.values())
