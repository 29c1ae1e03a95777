"""A planned run as the command that starts it. Neighbours: `search` finds the run, `report` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from tinyllama_mcore.config.schema import Float8Config, RunConfig
from tinyllama_mcore.planning.gpus import NODE


def flags(run: RunConfig) -> Iterator[str]:
    """The trainer's flags that make this run of its recipe and JSON; defaults are left out."""
    layout = run.layout
    yield from ("--deepspeed_config", run.sharding.source, "--recipe", run.recipe)
    yield from ("--micro-batch-size", str(run.batch.micro_batch_size))
    yield from ("--global-batch-size", str(run.batch.global_batch_size))
    yield from ("--seq-length", str(run.batch.seq_length))
    for axis in ("tensor_model", "pipeline_model", "virtual_pipeline_model", "context"):
        size = getattr(layout, f"{axis}_parallel_size")
        if size > 1:
            yield from (f"--{axis.replace('_', '-')}-parallel-size", str(size))
    if layout.sequence_parallel:
        yield "--sequence-parallel"
    if layout.recompute_granularity != "none":
        yield from ("--recompute-granularity", layout.recompute_granularity)
    if run.compile:
        yield "--compile"
    elif run.transformer_impl == "local" and layout.recompute_granularity != "selective":  # those two choose it
        yield from ("--transformer-impl", "local")
    yield from _float8(run.float8)
    if run.cuda_graph is not None:
        yield "--cuda-graph" if run.cuda_graph else "--no-cuda-graph"


def _float8(float8: Float8Config) -> Iterator[str]:
    if float8.recipe is not None:
        yield from ("--fp8-recipe", float8.recipe)
    for end in ("start", "end"):
        if count := getattr(float8, f"num_layers_at_{end}_in_bf16"):
            yield from (f"--num-layers-at-{end}-in-bf16", str(count))


def launch(run: RunConfig) -> str:
    """The whole command, to be started once on each node."""
    world = run.layout.world_size
    each = next(size for size in range(min(NODE, world), 0, -1) if world % size == 0)
    nodes = f"--nnodes {world // each} --rdzv_backend c10d --rdzv_endpoint $HEAD_NODE:29500 " if world > each else ""
    return f"torchrun {nodes}--nproc_per_node {each} -m tinyllama_mcore pretrain {' '.join(flags(run))}"
