"""The model's logits are those of Hugging Face's Llama with the same weights, for odd shapes and every tensor cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.conftest import VOCABULARY
from tests.distributed import ranks
from tinyllama_mcore.config import recipes
from tinyllama_mcore.config.schema import LayoutConfig, ModelConfig, RopeScaling

DEBUG = dataclasses.replace(recipes.RECIPES["tinyllama-debug"].model, vocab_size=VOCABULARY)
SHAPES = {
    "debug": DEBUG,
    "1 group": dataclasses.replace(DEBUG, num_query_groups=1),
    "2 groups": dataclasses.replace(DEBUG, num_query_groups=2),
    "8 groups": dataclasses.replace(DEBUG, num_query_groups=8),
    "llama3 positions": dataclasses.replace(
        DEBUG, rope_scaling=RopeScaling(rope_type="llama3", factor=4.0, original_max_position_embeddings=64)
    ),
    "linear positions": dataclasses.replace(DEBUG, rope_scaling=RopeScaling(rope_type="linear", factor=4.0)),
    "odd widths": dataclasses.replace(DEBUG, hidden_size=96, ffn_hidden_size=268, num_layers=3, rotary_base=5000.0),
}


def _compare(shape: ModelConfig, layout: LayoutConfig, backend: str, out: Path) -> int:
    """Largest difference of logits on fixed tokens, by rank 0, in `out`."""
    from tests.distributed.reference import SEED, reference_model
    from tinyllama_mcore.engine.deepspeed_engine import DeepSpeedEngine
    from tinyllama_mcore.hf.parity import standalone_run
    from tinyllama_mcore.model import gpt
    from tinyllama_mcore.model.initialize import initial_shards
    from tinyllama_mcore.parallel import launch, mesh

    run = dataclasses.replace(standalone_run(shape), layout=layout, attention_backend=backend)
    launch.start_process_group(launch.read())
    here = mesh.build(run.layout, SEED)
    engine = DeepSpeedEngine(run, here, gpt.build(run, here))
    engine.load_state(initial_shards(shape, here.tensor, SEED), 0)
    tokens = torch.randint(0, VOCABULARY, (2, 64), generator=torch.Generator().manual_seed(0))
    ours = engine.logits(tokens)
    if here.is_first:
        with torch.no_grad():
            hf = reference_model(shape)
            theirs = hf(tokens).logits
        assert ours.shape == theirs.shape
        out.write_text(repr(float((ours - theirs).abs().max())))
    return 0


TENSOR = {tp: LayoutConfig(world_size=tp, tensor_model_parallel_size=tp) for tp in (1, 2, 4)}
CASES = [
    *(
        (name, layout)
        for name, shape in SHAPES.items()
        for tp, layout in TENSOR.items()
        if shape.num_query_groups % tp == 0
    ),
    ("llama3 positions", LayoutConfig(world_size=2, context_parallel_size=2)),
    ("linear positions", LayoutConfig(world_size=2, pipeline_model_parallel_size=2, pipeline_num_layers=(3, 1))),
    ("debug", LayoutConfig(world_size=4, context_parallel_size=2, pipeline_model_parallel_size=2)),
]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_logits_are_those_of_hugging_face(name: str, layout: LayoutConfig, tmp_path: Path) -> None:
    """At most 1e-5 apart in fp32."""
    world = layout.world_size
    codes = ranks.run(world, _compare, SHAPES[name], layout, "auto", tmp_path / "difference", logs=tmp_path)
    assert codes == [0] * world, (tmp_path / "rank0.log").read_text()[-2000:]
    assert float((tmp_path / "difference").read_text()) <= 1e-5


@pytest.mark.parametrize("backend", ["sdpa", "unfused"])
def test_attention_backends_agree(backend: str, tmp_path: Path) -> None:
    """Each kernel that a CPU has."""
    codes = ranks.run(1, _compare, DEBUG, TENSOR[1], backend, tmp_path / "difference", logs=tmp_path)
    assert codes == [0], (tmp_path / "rank0.log").read_text()[-2000:]
    assert float((tmp_path / "difference").read_text()) <= 1e-5
