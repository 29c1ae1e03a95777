"""What the planner says of engines is what they choose, with the sizes of axes alone in the place of a mesh."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.distributed.ranks import CHECKOUT
from tests.planning.counted import make_run
from tests.planning.test_memory import CONTEXT, LOCAL, PIPELINE, TENSOR
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.planning import engines

GROUPS_OF_ONE = {"bf16": {"enabled": True}, "fsdp": {"sharding_strategy": "hybrid_shard", "hybrid_shard_size": 1}}
WHOLE = {"bf16": {"enabled": True}, "fsdp": {"sharding_strategy": "shard_grad_op"}}
OFFLOADED = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}},
}
IN_BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "bf16"}, "zero_optimization": {"stage": 2}}
SHIPPED = ("zero0", "zero1", "zero2", "zero3", "zero3_offload", "fsdp")
WRITTEN = {"one": GROUPS_OF_ONE, "whole": WHOLE, "offloaded": OFFLOADED, "in_bf16": IN_BF16}
FLAGS = ((), TENSOR, PIPELINE, CONTEXT, LOCAL, ("--no-cuda-graph",), ("--inter-document-masking",))


def mesh_of(run: RunConfig) -> Any:  # noqa: ANN401  no mesh, but its sizes
    """The sizes that engines look at, on a GPU."""
    layout = run.layout
    return SimpleNamespace(
        tensor=SimpleNamespace(size=layout.tensor_model_parallel_size),
        pipeline=SimpleNamespace(size=layout.pipeline_model_parallel_size),
        context=SimpleNamespace(size=layout.context_parallel_size),
        shard=SimpleNamespace(size=layout.shard_size),
        device=SimpleNamespace(type="cuda"),
    )


@pytest.fixture
def runs(tmp_path: Path) -> list[RunConfig]:
    """The legal ones of every JSON on one and two ranks."""
    sources = [str(CHECKOUT / f"ds_configs/{name}.json") for name in SHIPPED]
    for name, document in WRITTEN.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
        sources.append(str(tmp_path / f"{name}.json"))
    made = []
    for source, flags, world in product(sources, FLAGS, (1, 2)):
        if (world == 1 and flags in (TENSOR, PIPELINE, CONTEXT)) or ("zero3" in source and flags == PIPELINE):
            continue
        recipe = "tinyllama-debug" if "zero0" in source else "tinyllama-1.1b"
        batch = ("--micro-batch-size", "1", "--global-batch-size", "4")
        made.append(make_run(("--deepspeed_config", source, "--recipe", recipe, *batch, *flags), world))
    return made


def test_the_stage_and_the_graph_are_the_engines(runs: list[RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's: the stage that runs, whether it builds a BF16_Optimizer, and what is recorded."""
    monkeypatch.setattr(launch, "sees_peer", lambda: True)  # as on a host of GPUs over NVLink
    from tinyllama_mcore.engine import deepspeed_engine
    from tinyllama_mcore.engine.cuda_graph import can_be_recorded

    for run in runs:
        if run.sharding.fsdp is None:
            mesh = mesh_of(run)
            assert engines.stage(run) == deepspeed_engine._stage_that_shards(run, mesh), run
            flat = engines.has_flat_gradients(run)
            asked = run.cuda_graph is not False and run.transformer_impl == "fused"
            recorded = asked and flat and can_be_recorded(run, mesh)
            assert engines.replays_a_graph(run) == recorded, run
        else:
            assert not engines.replays_a_graph(run)
    assert {engines.replays_a_graph(run) for run in runs} == {False, True}


def test_what_is_kept_whole_is_fsdps(runs: list[RunConfig]) -> None:
    """By the engine's own question, asked of the last axis of its mesh."""
    from tinyllama_mcore.engine import fsdp_engine

    for run in (run for run in runs if run.sharding.fsdp is not None):
        shards: Any = SimpleNamespace(ndim=1, size=lambda _, run=run: engines.fsdp_group(run))
        keeps = fsdp_engine._keeps_wholes(run, shards)
        no_pipeline = run.layout.pipeline_model_parallel_size == 1
        assert engines.fsdp_keeps_gradients(run) == (keeps and no_pipeline), run
        assert engines.fsdp_keeps_weights(run) == (keeps or not no_pipeline), run


def test_where_products_add_to_gradients(runs: list[RunConfig]) -> None:
    """Fused layers over DeepSpeed's flat buffer or FSDP's whole gradients."""
    for run in runs:
        fused, local = (replace(run, transformer_impl=impl) for impl in ("fused", "local"))
        assert not engines.adds_in_the_product(local)
        assert engines.adds_in_the_product(fused) == (
            engines.has_flat_gradients(run) or engines.fsdp_keeps_gradients(run)
        )
