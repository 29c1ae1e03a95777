"""The model's logits are those of Hugging Face's Llama with the same weights, for odd shapes and every tensor cut."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.conftest import VOCABULARY
from tests.distributed import many, ranks
from tests.distributed.variants import VARIANTS, shape_of
from tinyllama_mcore.config import recipes
from tinyllama_mcore.config.parameters import LogicalParameter, logical_parameters
from tinyllama_mcore.config.schema import LayoutConfig, ModelConfig, RopeScaling

if TYPE_CHECKING:
    from tinyllama_mcore.engine.protocol import StateLookup
    from tinyllama_mcore.parallel.mesh import Axis

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
    **{f"{name} {groups} groups": shape_of(name, num_query_groups=groups) for name in VARIANTS for groups in (4, 2)},
    "odd widths": dataclasses.replace(DEBUG, hidden_size=96, ffn_hidden_size=268, num_layers=3, rotary_base=5000.0),
}


@dataclass(frozen=True)
class Case:
    """A model whose logits are compared, and how it is cut."""

    shape: str
    """A key of SHAPES."""
    layout: LayoutConfig
    backend: str = "auto"
    layers: str = "fused"


def _value(parameter: LogicalParameter, shape: ModelConfig, seed: int) -> torch.Tensor:
    """What a run starts with; norms and biases as if they had been trained, so that none is one or zero."""
    from tinyllama_mcore.model.initialize import initial_value

    value = initial_value(parameter, shape, seed)
    if parameter.kind not in ("norm", "bias"):
        return value
    rng = torch.Generator().manual_seed(zlib.crc32(parameter.name.encode()))
    return value + 0.5 * torch.randn(value.shape, generator=rng)


def _lookup(shape: ModelConfig, at: Axis) -> StateLookup:
    """What `_value` gives of each parameter, as an engine asks a tensor-parallel rank for it."""
    from tests.distributed.reference import SEED
    from tinyllama_mcore.model.parameters import pad_rows, part_names, shard_of

    parameters = {parameter.name: parameter for parameter in logical_parameters(shape)}

    def part(name: str) -> torch.Tensor:
        parameter = parameters[name]
        shard = shard_of(_value(parameter, shape, SEED), parameter.tp_dim, at.rank, at.size)
        return pad_rows(shard, parameter, at.size)

    return lambda kind, name: torch.cat([part(each) for each in part_names(name)]) if kind == "model" else None


def _compare(cases: Sequence[Case], out: Path) -> int:
    """Largest difference of logits on fixed tokens of each case in turn, a line each in `out`, by rank 0."""
    from tests.distributed.reference import SEED, reference_model
    from tinyllama_mcore.engine.deepspeed_engine import DeepSpeedEngine
    from tinyllama_mcore.hf.parity import standalone_run
    from tinyllama_mcore.model import gpt
    from tinyllama_mcore.parallel import launch, mesh

    many.one_process_group()
    for case in cases:
        shape = SHAPES[case.shape]
        passes = {"attention_backend": case.backend, "transformer_impl": case.layers}
        run = dataclasses.replace(standalone_run(shape), layout=case.layout, **passes)
        launch.start_process_group(launch.this_process())
        here = mesh.build(run.layout, SEED)
        engine = DeepSpeedEngine(run, here, gpt.build(run, here))
        engine.load_state(_lookup(shape, here.tensor), 0)
        tokens = torch.randint(0, VOCABULARY, (2, 64), generator=torch.Generator().manual_seed(0))
        ours = engine.logits(tokens)
        if here.is_first:
            with torch.no_grad():
                theirs = reference_model(shape, _value)(tokens).logits
            assert ours.shape == theirs.shape
            with out.open("a") as file:
                print(float((ours - theirs).abs().max()), file=file)
    return 0


def _cut(layout: LayoutConfig) -> str:
    """The axes in a few letters, for the name of a test."""
    sizes = {
        "tp": layout.tensor_model_parallel_size,
        "pp": layout.pipeline_model_parallel_size,
        "cp": layout.context_parallel_size,
    }
    return "-".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1) or "whole"


TENSOR = {tp: LayoutConfig(world_size=tp, tensor_model_parallel_size=tp) for tp in (1, 2, 4)}
PIPELINE = LayoutConfig(world_size=2, pipeline_model_parallel_size=2)
CASES = [
    *(
        Case(name, layout)
        for name, shape in SHAPES.items()
        for tp, layout in TENSOR.items()
        if shape.num_query_groups % tp == 0
    ),
    Case("llama3 positions", LayoutConfig(world_size=2, context_parallel_size=2)),
    Case("linear positions", LayoutConfig(world_size=2, pipeline_model_parallel_size=2, pipeline_num_layers=(3, 1))),
    Case("debug", LayoutConfig(world_size=4, context_parallel_size=2, pipeline_model_parallel_size=2)),
    *(Case("debug", TENSOR[1], backend) for backend in ("sdpa", "unfused")),
    *(Case(f"{name} 2 groups", TENSOR[tp], layers="local") for name in VARIANTS for tp in (1, 2)),
    *(Case(f"{name} 2 groups", PIPELINE, layers=layers) for name in VARIANTS for layers in ("fused", "local")),
]
"""Every shape in every tensor cut that it has, each other axis, and each attention kernel that a CPU has."""


@pytest.fixture(scope="module")
def difference_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], float]:
    """The largest difference of a case's logits; all cases of as many ranks are computed by one set of ranks."""
    home, found = tmp_path_factory.mktemp("logits"), {}

    def difference(case: Case) -> float:
        world = case.layout.world_size
        out, cases = home / str(world), [each for each in CASES if each.layout.world_size == world]
        if world not in found:
            out.touch()
            codes = ranks.run(world, _compare, cases, out, logs=home / f"logs{world}")
            found[world] = dict(zip(cases, map(float, out.read_text().split()), strict=False))
            found[world].update(dict.fromkeys(cases[len(found[world]) :], math.nan))
            assert codes == [0] * world, (home / f"logs{world}" / "rank0.log").read_text()[-2000:]
        return found[world][case]

    return difference


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.shape}-{_cut(c.layout)}-{c.backend}-{c.layers}")
def test_logits_are_those_of_hugging_face(case: Case, difference_of: Callable[[Case], float]) -> None:
    """At most 1e-5 apart in fp32."""
    assert difference_of(case) <= 1e-5
