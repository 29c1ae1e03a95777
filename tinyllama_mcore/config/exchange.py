"""Whether the sums of two tensor-parallel GPUs can be copies from one to the other, beside products.

One judge for the rules, for the model, which exchanges where it can, and for the planner.
Neighbours: `rules.kernels`, `parallel.exchange`, `engines`.
"""

from __future__ import annotations

from collections.abc import Callable

from tinyllama_mcore.config.schema import RunConfig


def fits(run: RunConfig) -> bool:
    """Whether layers and layout are what it was run with (docs/evidence/performance.md), and it was not turned off.

    Ranks add up the gradients of norms of heads by NCCL, which must not be in a graph.
    """
    layout, in_bf16 = run.layout, run.sharding.precision == "bf16"
    alone = layout.pipeline_model_parallel_size == layout.context_parallel_size == 1 and not layout.sequence_parallel
    two = alone and layout.tensor_model_parallel_size == 2 and not run.model.qk_layernorm
    return run.tp_comm_overlap is not False and run.transformer_impl == "fused" and in_bf16 and two


def obstacle(run: RunConfig, sees_peer: Callable[[], bool]) -> str | None:
    """Why not, in words that end a sentence; None where it can.

    Args:
        run: the run.
        sees_peer: whether this GPU and its neighbour see each other's memory; called last, as asking imports torch.
    """
    if run.tp_comm_overlap is False:
        return "was turned off (--no-tp-comm-overlap)"
    if not fits(run):
        return (
            "needs fused layers in bf16 without norms of heads, and tensor parallel 2 without sequence, pipeline and "
            "context parallelism"
        )
    return None if sees_peer() else "needs two GPUs of one host that see each other's memory"
