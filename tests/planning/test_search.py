"""The search finds what the rules allow and nothing else, and what it prints can be run."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from tests.distributed.ranks import CHECKOUT
from tinyllama_mcore.config import cli, describe
from tinyllama_mcore.config.deepspeed.document import Document
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.planning import command, gpus, search
from tinyllama_mcore.planning.request import Request, answer, bases
from tinyllama_mcore.planning.search import Plan

H100 = gpus.find("h100")
FILES = tuple(str(CHECKOUT / f"ds_configs/{name}.json") for name in ("zero1", "zero3", "fsdp"))


def plan(request: Request) -> Plan:
    """The whole answer for H100s."""
    return search.search(bases(request), H100)


@pytest.fixture(scope="module")
def sixteen() -> Plan:
    """The 1.1B model on two nodes."""
    return plan(Request(recipe="tinyllama-1.1b", world_size=16, files=FILES))


def spelled(run: RunConfig) -> str:
    """What is varied, for comparison."""
    return json.dumps([str(run.layout), run.batch.micro_batch_size, describe.layers(run), run.sharding.source])


def test_it_finds_every_run_that_the_rules_allow() -> None:
    """The plain product of the same sizes, each judged by all rules, is the same set: pruning loses nothing."""
    request = Request(recipe="tinyllama-1.1b", world_size=4, files=FILES, given=("--global-batch-size", "8"))
    legal = set()
    for base, tp, pp, vp, cp in product(bases(request), (1, 2, 4), (1, 2, 4), (1, 2, 3, 4), (1, 2, 4)):
        for sp, recompute, micro, compiled in product(
            (False, True), ("none", "selective", "full"), search.MICRO_BATCHES, (False, True)
        ):
            layers = "local" if compiled else "fused"
            layout = replace(
                base.run.layout,
                tensor_model_parallel_size=tp,
                pipeline_model_parallel_size=pp,
                virtual_pipeline_model_parallel_size=vp,
                context_parallel_size=cp,
                sequence_parallel=sp,
                recompute_granularity=recompute,
            )
            if tp * pp * cp > 4:
                continue
            run = replace(search._with(base, layout, micro_batch_size=micro), compile=compiled)
            run = replace(run, transformer_impl=layers)
            if search.broken_rule(run, tuple(legality.rows(has_gpu=lambda: True))) is None:
                legal.add(spelled(run))
    found = plan(request)
    assert {spelled(c.run) for c in (*found.fitting, *found.too_large)} == legal
    assert len(legal) > 500


def test_best_first(sixteen: Plan) -> None:
    """Fitting runs by speed; those that do not fit by size; the line between them is the GPU's."""
    speeds = [c.tokens_per_second for c in sixteen.fitting]
    sizes = [c.memory.total for c in sixteen.too_large]
    assert speeds == sorted(speeds, reverse=True)
    assert sizes == sorted(sizes)
    assert max(c.memory.total for c in sixteen.fitting) <= H100.usable < sizes[0]


def test_an_illegal_kind_has_the_message_of_its_rule(sixteen: Plan) -> None:
    """Each once, in the words of `legality.check`."""
    told = {refusal.rule: refusal.message for refusal in sixteen.refusals}
    assert len(told) == len(sixteen.refusals)
    assert "needs ZeRO 2 or less" in told["ZeRO 3 needs pipeline parallel 1"]
    assert "sizes that fit it: 1, 2, 4" in told["tensor parallel divides the query groups"]
    assert set(told) <= {rule.name for rule in legality.rows(has_gpu=lambda: True)}


def test_the_printed_command_is_the_run(sixteen: Plan) -> None:
    """Parsed by the trainer's own reader, every hundredth run is the one that was planned, and legal.

    So are those that are not searched: local layers, compiled or not, with each recompute and without a graph.
    """
    runs = [candidate.run for candidate in sixteen.fitting[::100]]
    assert {describe.layers(run) for run in runs} == {"fused", "local compiled"}
    base = next(run for run in runs if not run.layout.sequence_parallel)
    for recompute, compiled in product(("none", "selective", "full"), (False, True)):
        layout = replace(base.layout, recompute_granularity=recompute)
        runs.append(replace(base, layout=layout, transformer_impl="local", compile=compiled, cuda_graph=False))
    runs.append(replace(base, cuda_graph=True))
    for run in runs:
        argv = command.launch(run).partition("examples/pretrain_tinyllama.py ")[2].split()
        parsed = cli.parse(argv, world_size=16, has_gpu=lambda: True)
        legality.check(parsed, has_gpu=lambda: True)
        assert replace(parsed, notes=()) == run


def test_a_batch_that_the_json_fixes_is_not_varied(tmp_path: Path) -> None:
    """`train_micro_batch_size_per_gpu: 4` is the only one that is tried."""
    document = {**Document.read(FILES[0]).blocks, "train_micro_batch_size_per_gpu": 4}
    fixed = tmp_path / "fixed.json"
    fixed.write_text(json.dumps(document))
    found = plan(Request(recipe="tinyllama-1.1b", world_size=2, files=(str(fixed),)))
    assert {c.run.batch.micro_batch_size for c in found.fitting} == {4}


def test_4096_gpus_take_seconds() -> None:
    """Most layouts leave less than a sequence for a rank: they are told apart without being tried one by one."""
    found = plan(Request(recipe="tinyllama-1.1b", world_size=4096, files=FILES[:1]))
    assert found.fitting[0].run.layout.ranks_per_sample >= 4
    assert any("global batch" in refusal.rule for refusal in found.refusals)


@pytest.mark.parametrize(
    ("explain", "message"),
    [
        ("tp=8", "does not divide the 4 query groups"),
        ("pp=2,json=zero3", "needs ZeRO 2 or less"),
        ("tp=2,sp=on,compile=on", "--compile does not work with --sequence-parallel"),
        ("mb=64", "legal, but the search does not try it"),
        (
            "impl=local,compile=off",
            "legal, but the search does not try it: it tries .*, and local layers only with --compile",
        ),
        ("recompute=selective,compile=off", "legal, but the search does not try it"),
        ("impl=fused,compile=on", "has its own kernels and nothing to compile"),
        ("tq=2", "expected key=value; keys: tp, pp,"),
        ("tp", "expected key=value"),
        ("json=zero9", "json must be one of zero1, zero3, fsdp, got zero9"),
    ],
)
def test_what_is_not_there_is_explained(sixteen: Plan, explain: str, message: str) -> None:
    """With the rule's own message where a rule forbids it."""
    with pytest.raises(ConfigError, match=message):
        answer(Request(recipe="tinyllama-1.1b", world_size=16, files=FILES, explain=explain), sixteen)


def test_the_best_of_what_is_asked_for(sixteen: Plan) -> None:
    """The fastest with those keys."""
    request = Request(recipe="tinyllama-1.1b", world_size=16, files=FILES, explain="tp=2, pp=2")
    layout = answer(request, sixteen).run.layout
    assert (layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size) == (2, 2)
    assert answer(replace(request, explain=""), sixteen) == sixteen.fitting[0]
    local = answer(replace(request, explain="impl=local,recompute=selective"), sixteen).run
    assert describe.layers(local) == "local compiled"
