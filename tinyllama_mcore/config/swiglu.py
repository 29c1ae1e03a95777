"""Whether a run's SwiGLU can be computed within the matrix products around it, which the package quack does.

One judge for the rule that refuses `--swiglu-backend quack` and for the model, which takes it where it can.
Neighbours: `rules.kernels`, `model.products`; `kernels.quack_products` calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

from tinyllama_mcore.config import engines
from tinyllama_mcore.config.schema import RunConfig

SERIES = "0.6."
"""Versions of quack-kernels that this was run with. Its interface is young."""
MULTIPLE = 64
"""What hidden and feed-forward sizes of a rank have to be multiples of; others were not tried."""


def quack_version() -> str | None:
    """The installed version of quack-kernels; None where it is not installed."""
    try:
        return metadata.version("quack-kernels")
    except metadata.PackageNotFoundError:
        return None


def _was_run(run: RunConfig) -> bool:
    """Whether it was run on a GPU under such sharding and layout (docs/evidence/performance.md)."""
    fsdp, layout = run.sharding.fsdp, run.layout
    whole = layout.pipeline_model_parallel_size == layout.context_parallel_size == 1
    return whole and (engines.has_flat_gradients(run) if fsdp is None else not fsdp.cpu_offload)


def obstacle(run: RunConfig, is_hopper: Callable[[], bool]) -> str | None:
    """Why not, in words that end a sentence; None where it can.

    Args:
        run: the run.
        is_hopper: whether the GPU is a Hopper; called last, as asking imports torch.
    """
    sizes = (run.model.hidden_size, run.model.ffn_hidden_size // run.layout.tensor_model_parallel_size)
    installed = quack_version()
    if run.transformer_impl != "fused" or run.sharding.precision != "bf16":
        return f"it needs fused layers in bf16, and these are {run.transformer_impl} ones in {run.sharding.precision}"
    if not _was_run(run):
        return "it was run under ZeRO-1 and FSDP in fp32 accumulation, without offload, pipeline or context parallelism"
    if run.deterministic_mode:
        return "it was not run with --deterministic-mode"
    if run.float8.recipe is not None:
        return f"it is in bf16, and this run has --fp8-recipe {run.float8.recipe}"
    if any(size % MULTIPLE for size in sizes):
        return f"it needs multiples of {MULTIPLE}, and a rank has hidden {sizes[0]:,}, feed-forward {sizes[1]:,}"
    if installed is None:
        return "it needs the package quack-kernels, which is not installed: pip install 'tinyllama_mcore[hopper]'"
    if not installed.startswith(SERIES):
        return f"it was run with quack-kernels {SERIES}x, and {installed} is installed"
    return None if is_hopper() else "it needs a Hopper GPU (H100, H200), and there is none here"
