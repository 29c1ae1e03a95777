"""The spread of weights that should be equal, over both axes along which they have copies."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.distributed import ranks
from tinyllama_mcore.config.schema import LayoutConfig


def _spread() -> None:
    """Four ranks, two by two: tensor ranks are neighbours."""
    from tests.engine.replicas import spread
    from tinyllama_mcore.parallel import launch, mesh

    launch.start_process_group(launch.this_process())
    axes = mesh.build(LayoutConfig(world_size=4, tensor_model_parallel_size=2), 0)
    same, by_tensor = torch.ones(3, 5), torch.full((7,), 0.5 * axes.tensor.rank)
    by_shard = torch.zeros(2, 2).index_fill(0, torch.tensor([1]), -3.0 * axes.shard.rank)
    for weights, expected in (
        ([], 0.0),
        ([(same, True), (same, False)], 0.0),
        ([(by_tensor, True)], 0.0),
        ([(by_tensor, False)], 0.5),
        ([(by_shard, True)], 3.0),
        ([(same, False), (by_tensor, False), (by_shard, True)], 3.0),
        ([(by_tensor.bfloat16(), False)], 0.5),
    ):
        assert spread(iter(weights), axes) == expected


def test_the_largest_difference_is_known_to_all(tmp_path: Path) -> None:
    """Along the tensor axis only of weights that it does not cut; nothing that is given is changed."""
    assert ranks.run(4, _spread, logs=tmp_path) == [0] * 4, ranks._tails(tmp_path)
