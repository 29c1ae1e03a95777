"""How fast ranks of one group talk, and what a collective over them costs.

Rank order is Megatron's: tensor, context, data, pipeline, the first varying fastest; so a group's reach says whether it
stays inside a node. Neighbour: `throughput`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyllama_mcore.config.schema import LayoutConfig
from tinyllama_mcore.planning.gpus import NODE, Gpu

ALL_REDUCE_SHARE = 0.72
"""Share of a link's data sheet that NCCL's all-reduce reaches with large messages."""
GATHER_SHARE = 0.45
"""The same for all-gather and reduce-scatter; both fitted, as `throughput`'s constants are."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What joins the ranks of a group."""

    ranks: int
    bandwidth: float
    """Bytes/s that each rank sends, by the data sheet."""


def tensor(layout: LayoutConfig, gpu: Gpu) -> Link:
    """Among ranks that share each matrix."""
    return _link(gpu, stride=1, ranks=layout.tensor_model_parallel_size)


def context(layout: LayoutConfig, gpu: Gpu) -> Link:
    """Among ranks that share each sequence."""
    return _link(gpu, stride=layout.tensor_model_parallel_size, ranks=layout.context_parallel_size)


def shards(layout: LayoutConfig, gpu: Gpu, ranks: int) -> Link:
    """Among neighbouring ranks of the data and context axes."""
    return _link(gpu, stride=layout.tensor_model_parallel_size, ranks=ranks)


def copies(layout: LayoutConfig, gpu: Gpu, group: int) -> Link:
    """Among ranks that hold the same shard in different groups of hybrid sharding."""
    return _link(gpu, stride=layout.tensor_model_parallel_size * group, ranks=layout.shard_size // group)


def pipeline(layout: LayoutConfig, gpu: Gpu) -> float:
    """Bytes/s from one pipeline rank to the next."""
    stride = layout.world_size // layout.pipeline_model_parallel_size
    return ALL_REDUCE_SHARE * _link(gpu, stride=stride, ranks=2).bandwidth


def _link(gpu: Gpu, *, stride: int, ranks: int) -> Link:
    """Ranks `stride` apart. A ring over nodes uses the adapters of all of its ranks in a node at once."""
    if stride * ranks <= NODE:
        return Link(ranks=ranks, bandwidth=gpu.nvlink)
    return Link(ranks=ranks, bandwidth=min(gpu.nvlink, gpu.network * max(1, NODE // stride)))


def all_reduce(size: float, link: Link) -> float:
    """Seconds to sum `size` bytes over the ranks: each sends 2 (n - 1) / n of them."""
    return 2 * (link.ranks - 1) / link.ranks * size / (ALL_REDUCE_SHARE * link.bandwidth)


def gather(size: float, link: Link) -> float:
    """Seconds to gather `size` bytes in all, or to reduce and scatter them: each rank sends (n - 1) / n of them."""
    return (link.ranks - 1) / link.ranks * size / (GATHER_SHARE * link.bandwidth)
