"""How layers are cut into pipeline chunks, and what follows from the sizes of the axes."""

from __future__ import annotations

import pytest

from tinyllama_mcore.config.schema import LayoutConfig


@pytest.mark.parametrize(
    ("layers", "pipeline", "virtual", "chunks"),
    [
        (22, 1, 1, (22,)),
        (22, 2, 1, (11, 11)),
        (22, 4, 1, (5, 6, 6, 5)),
        (22, 8, 1, (2, 3, 3, 3, 3, 3, 3, 2)),
        (22, 3, 1, (7, 8, 7)),
        (22, 2, 3, (3, 4, 4, 4, 4, 3)),
        (5, 4, 1, (1, 2, 1, 1)),
    ],
)
def test_layers_are_shared_evenly_and_ends_are_lighter(
    layers: int, pipeline: int, virtual: int, chunks: tuple[int, ...]
) -> None:
    """The first chunk also has the embedding, the last the head."""
    layout = LayoutConfig(
        world_size=8, pipeline_model_parallel_size=pipeline, virtual_pipeline_model_parallel_size=virtual
    )
    assert layout.layers_by_chunk(layers) == chunks
    assert sum(chunks) == layers


def test_a_split_that_is_given_holds() -> None:
    """--pipeline-num-layers 6,6,5,5."""
    layout = LayoutConfig(world_size=4, pipeline_model_parallel_size=4, pipeline_num_layers=(6, 6, 5, 5))
    assert layout.layers_by_chunk(22) == (6, 6, 5, 5)


def test_the_product_rule() -> None:
    """World = tensor x pipeline x context x data; what is sharded is sharded over data x context."""
    layout = LayoutConfig(
        world_size=96, tensor_model_parallel_size=2, pipeline_model_parallel_size=4, context_parallel_size=3
    )
    assert (layout.data_parallel_size, layout.shard_size, layout.ranks_per_sample) == (4, 12, 24)
