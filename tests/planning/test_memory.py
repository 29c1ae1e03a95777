"""The planner's bytes against what engines hold on a CPU, and against peaks that were measured on H100s."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.planning import counted
from tinyllama_mcore.config import engines, recipes, records
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.planning import gpus, memory, rank
from tinyllama_mcore.planning.activations import FP32

GIB = 2**30
TENSOR, PIPELINE = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")
INTERLEAVED, CONTEXT = ("--virtual-pipeline-model-parallel-size", "2"), ("--context-parallel-size", "2")

TIED = {"untie_embeddings_and_output_weights": False, "add_qkv_bias": True}
FLOAT8 = ("--fp8-recipe", "rowwise_with_gw_hp")
GRAD_OP, EACH = (str(Path(__file__).with_name(name)) for name in ("shard_grad_op", "sync_each_batch"))
# (JSON, flags, ranks): parts that are alive after an update; all but ZeRO-1 and 3 let go of gradients
HELD = {
    ("zero0", (), 2): ("weights", "optimizer"),
    ("zero1", (), 2): ("weights", "gradients", "optimizer"),
    ("zero1", FLOAT8, 2): ("weights", "gradients", "optimizer"),
    ("zero2", (), 2): ("weights", "optimizer"),
    ("zero2", PIPELINE, 2): ("weights", "gradients", "optimizer"),  # as ZeRO-1: nothing to shard
    ("zero3", (), 2): ("weights", "gradients", "optimizer"),
    ("zero3", (), 1): ("weights", "gradients", "optimizer"),  # likewise
    ("fsdp", (), 2): ("weights", "optimizer"),
    (EACH, (), 2): ("weights", "optimizer"),
    ("fsdp", PIPELINE, 2): ("weights", "optimizer"),
}


def small_run(tmp_path: Path, argv: tuple[str, ...], **more: object) -> tuple[str, ...]:
    """The command line of a model that is small but for its vocabulary, with more fields changed."""
    small = recipes.RECIPES["tinyllama-debug"]
    wide = {"vocab_size": 4096, "hidden_size": 256, "ffn_hidden_size": 512, "max_position_embeddings": 8}
    model = dataclasses.replace(small.model, **wide, **more)
    batch = dataclasses.replace(small.batch, seq_length=8)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(
        json.dumps(records.to_plain(dataclasses.replace(small, model=model, batch=batch, precision="bf16")))
    )
    return (*argv, "--recipe", str(recipe), "--micro-batch-size", "1", "--global-batch-size", "4")


def paper(world: int, micro: int, json_name: str, *flags: str, global_batch: int = 256) -> RunConfig:
    """The 1.1B model at 2048 tokens."""
    batch = ("--micro-batch-size", str(micro), "--global-batch-size", str(global_batch))
    source = str(ranks.CHECKOUT / "ds_configs" / f"{json_name}.json")  # an absolute name stays as it is
    return counted.make_run(("--deepspeed_config", source, "--recipe", "tinyllama-1.1b", *batch, *flags), world)


def alive(run: RunConfig, parts: tuple[str, ...]) -> float:
    """Bytes of these parts on the first rank, and of the buffer in which FSDP adds gradients up, which stays."""
    whole = FP32 * rank.elements(run, 0) if engines.fsdp_keeps_gradients(run) else 0
    return sum(getattr(memory.by_rank(run)[0], part) for part in parts) + whole


@pytest.mark.parametrize(("name", "flags", "world"), HELD)
def test_an_engine_holds_what_is_predicted(name: str, flags: tuple[str, ...], world: int, tmp_path: Path) -> None:
    """All tensors that are alive after an update (bf16, but for ZeRO-0), on the first rank: within 0.1%."""
    out = tmp_path / "held.json"
    source = ranks.CHECKOUT / "ds_configs" / f"{name}.json"  # an absolute name stays as it is
    argv = small_run(tmp_path, ("--deepspeed_config", str(source), *flags))
    codes = ranks.run(world, counted.held, argv, world, out, logs=tmp_path)
    assert codes == [0] * world, (tmp_path / "rank0.log").read_text()[-3000:]
    run = counted.make_run(argv, world)
    predicted = alive(run, HELD[name, flags, world])
    if name == "zero3" and world > 1:  # its bucket stays
        predicted += 2 * run.sharding.deepspeed["zero_optimization"]["reduce_bucket_size"]
    scales = 1e-3 if FLOAT8[0] in flags else 0  # of rows and columns: more of so small a model
    assert json.loads(out.read_text()) == pytest.approx(predicted, rel=1e-3 + scales)


@pytest.mark.parametrize(("name", "flags", "world"), [("zero1", (), 2), ("zero2", PIPELINE, 2), ("fsdp", (), 2)])
def test_a_tied_matrix_is_held_once(name: str, flags: tuple[str, ...], world: int, tmp_path: Path) -> None:
    """The same of a model with one matrix for embedding and head, and with biases."""
    out = tmp_path / "held.json"
    source = ("--deepspeed_config", str(ranks.CHECKOUT / f"ds_configs/{name}.json"), *flags)
    argv = small_run(tmp_path, source, **TIED)
    codes = ranks.run(world, counted.held, argv, world, out, logs=tmp_path)
    assert codes == [0] * world, (tmp_path / "rank0.log").read_text()[-3000:]
    run = counted.make_run(argv, world)
    predicted = alive(run, HELD[name, flags, world])
    assert json.loads(out.read_text()) == pytest.approx(predicted, rel=2e-3)


def test_the_last_pipeline_rank_holds_what_it_borrows() -> None:
    """The matrix in bf16 and its gradient in fp32, in place of weights, gradients and moments of a head of its own."""
    flags = ("--recipe", "llama-3.2-1b", "--micro-batch-size", "1", "--global-batch-size", "8", *PIPELINE)
    run = counted.make_run(("--deepspeed_config", str(ranks.CHECKOUT / "ds_configs/zero1.json"), *flags), 2)
    untied = dataclasses.replace(run, model=dataclasses.replace(run.model, untie_embeddings_and_output_weights=True))
    matrix = 128_256 * 2048
    assert [memory._loan(run, each) for each in (0, 1)] == [0, (2 + 4) * matrix]
    assert [rank.elements(untied, each) - rank.elements(run, each) for each in (0, 1)] == [0, matrix]
    assert memory.by_rank(run)[1].optimizer == memory.by_rank(untied)[1].optimizer - 8 * matrix


LOCAL = ("--transformer-impl", "local")

# max_memory_allocated of the first rank, 1.1B at 2048 tokens. Local layers, 16 sequences an iteration:
# docs/evidence/local-layers.md, but for ZeRO-2, ZeRO-3 and FSDP on one GPU, which run otherwise since.
LOCAL_LAYERS = [
    (paper(1, 1, "zero1", *LOCAL, global_batch=16), 21.58),
    (paper(1, 2, "zero1", *LOCAL, global_batch=16), 24.65),
    (paper(2, 4, "zero1", *LOCAL, global_batch=16), 24.65),
    (paper(2, 4, "zero2", *LOCAL, global_batch=16), 22.60),
    (paper(2, 4, "zero3", *LOCAL, global_batch=16), 23.97),
    (paper(2, 2, "zero1", *PIPELINE, *LOCAL, global_batch=16), 14.77),
    (paper(2, 2, "zero1", *PIPELINE, *INTERLEAVED, *LOCAL, global_batch=16), 16.07),
    (paper(2, 8, "zero1", *CONTEXT, *LOCAL, global_batch=16), 24.74),
    (paper(2, 8, "zero1", *TENSOR, *LOCAL, global_batch=16), 24.39),
    (paper(2, 8, "zero1", *TENSOR, "--sequence-parallel", *LOCAL, global_batch=16), 21.64),
    (paper(2, 4, EACH, "--compile", global_batch=16), 20.88),
    (paper(2, 8, "zero1", *TENSOR, "--compile", global_batch=16), 24.39),
    (paper(4, 4, "zero1", *TENSOR, "--sequence-parallel", *PIPELINE, *LOCAL, global_batch=16), 10.19),
    (paper(4, 8, "zero3", *TENSOR, *LOCAL, global_batch=16), 21.16),
]
# Fused layers on one H100, 8 micro-batches; with a CUDA graph, which takes 0.06 GiB more
FUSED_LAYERS = [
    (paper(1, 1, "zero1", global_batch=8), 20.39),
    (paper(1, 8, "zero1", global_batch=64), 33.18),
    (paper(1, 16, "zero1", global_batch=128), 47.80),
    (paper(1, 8, "fsdp", global_batch=64), 33.12),
]
WITH_WHOLE_MASTERS = [*LOCAL_LAYERS, *FUSED_LAYERS]
"""Measured before ZeRO-1 in bf16 kept the lower half of its masters alone."""
MEASURED = [
    (paper(1, 8, "zero1", global_batch=64), 31.13),
    (paper(1, 8, "zero1", *FLOAT8, global_batch=64), 33.0),
    (paper(2, 8, "zero1", *TENSOR, global_batch=64), 17.04),
    (paper(2, 8, "zero1", *FLOAT8, global_batch=128), 27.83),
    (paper(2, 8, GRAD_OP, global_batch=128), 27.06),
    (paper(2, 8, "fsdp", global_batch=128), 25.3),
    (paper(2, 8, EACH, global_batch=128), 23.3),
]
"""One and two H100s; docs/evidence/performance.md."""


@pytest.mark.parametrize(("run", "gib"), MEASURED, ids=lambda value: str(value) if isinstance(value, float) else "")
def test_peaks_of_real_gpus(run: RunConfig, gib: float) -> None:
    """Within 3% of what torch allocated on H100s."""
    assert memory.by_rank(run)[0].total / GIB == pytest.approx(gib, rel=0.03)


@pytest.mark.parametrize(
    ("run", "gib"), WITH_WHOLE_MASTERS, ids=lambda value: str(value) if isinstance(value, float) else ""
)
def test_peaks_of_real_gpus_with_whole_masters(run: RunConfig, gib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, with the 2 bytes an element of each rank's part that halves have saved since."""
    monkeypatch.setattr(memory, "_joined_masters", lambda *_: 0)
    halved = engines.has_flat_gradients(run)
    saved = 2 * rank.elements(run, 0) / run.layout.shard_size if halved else 0
    assert (memory.by_rank(run)[0].total + saved) / GIB == pytest.approx(gib, rel=0.03)


def test_one_micro_batch_has_no_gradients_to_add_to(tmp_path: Path) -> None:
    """FSDP in groups of 2 of 4 H100s, one micro-batch of 4 each: 18.83 GiB. Two micro-batches find the first's."""
    hybrid = tmp_path / "hybrid.json"
    hybrid.write_text(
        json.dumps({"bf16": {"enabled": True}, "fsdp": {"sharding_strategy": "hybrid_shard", "hybrid_shard_size": 2}})
    )
    one, two = (memory.worst(paper(4, 4, str(hybrid.with_suffix("")), *LOCAL, global_batch=n)) for n in (16, 32))
    assert one.total / GIB == pytest.approx(18.83, rel=0.01)
    assert two.total - one.total == two.gradients > 0


@pytest.mark.parametrize("json_name", ["zero3", "fsdp"])
def test_the_paper_fits_a_gpu_of_40_gb(json_name: str) -> None:
    """Section 2.4: micro batch 8 at 2048 tokens without recompute, on 16 GPUs, in under 40 GB."""
    run = paper(16, 8, json_name, global_batch=1024)
    assert run.layout.recompute_granularity == "none"
    assert memory.worst(run).total < 40e9
    assert memory.worst(run).total < gpus.find("a100-40gb").usable


@pytest.mark.parametrize("flags", [(), TENSOR, PIPELINE, (*PIPELINE, "--virtual-pipeline-model-parallel-size", "2")])
def test_ranks_hold_the_model_between_them(flags: tuple[str, ...]) -> None:
    """Elements of all pipeline ranks are the model's, as `config/parameters.py` lists and cuts it."""
    from tinyllama_mcore.config.parameters import logical_parameters

    run = paper(2, 8, "zero1", *flags)
    tp = run.layout.tensor_model_parallel_size
    expected = sum(p.numel // (tp if p.tp_dim is not None else 1) for p in logical_parameters(run.model))
    assert sum(rank.elements(run, r) for r in range(run.layout.pipeline_model_parallel_size)) == expected


def test_micro_batches_in_flight() -> None:
    """1F1B: as many as ranks follow, and its own. Interleaved: Megatron's warm-up and one, in groups of the ranks."""
    pipeline = ("--pipeline-model-parallel-size", "4")
    plain = paper(4, 8, "zero1", *pipeline)
    assert [rank.in_flight(plain, r) for r in range(4)] == [(4,), (3,), (2,), (1,)]
    few = paper(4, 8, "zero1", *pipeline, global_batch=16)
    assert rank.in_flight(few, 0) == (2,)
    virtual = paper(4, 8, "zero1", *pipeline, "--virtual-pipeline-model-parallel-size", "2")
    assert [rank.in_flight(virtual, r) for r in range(4)] == [(7, 4), (5, 4), (4, 3), (4, 1)]
    from megatron.core.pipeline_parallel.schedules import get_schedule_table

    order = [chunk for _, chunk in get_schedule_table(virtual.num_micro_batches, 2, 4)]
    for r in range(4):
        waiting = order[: 2 * (4 - r - 1) + 4 + 1]
        assert rank.in_flight(virtual, r) == (waiting.count(0), waiting.count(1))


def test_a_small_micro_batch_peaks_at_the_update(tmp_path: Path) -> None:
    """ZeRO-1 has a bf16 copy of its gradients then, where they are sent, and in bf16: 8 + 12/2 bytes an element.

    The step is DeepSpeed's own, which keeps masters whole.
    """
    flags = ("--recompute-granularity", "full")
    sent_in_fp32 = paper(2, 1, "zero1", *flags)
    shipped = json.loads((ranks.CHECKOUT / "ds_configs" / "zero1.json").read_text())
    (tmp_path / "bf16.json").write_text(json.dumps(shipped | {"communication_data_type": "bf16"}))
    sent, alone = (paper(world, 1, str(tmp_path / "bf16"), *flags) for world in (2, 1))
    peak = memory.worst(sent)
    assert (peak.activations, peak.logits) == (0, 0)
    assert peak.total == (2 + 2 + 4 + 4 + 2) * 1_100_048_384
    assert memory._update_buffers(sent, 0) == peak.buffers
    assert (memory._joined_masters(sent, 0), memory._joined_masters(sent_in_fp32, 0)) == (0, 2 * 1_100_048_384)
    assert memory._update_buffers(sent_in_fp32, 0) == memory._update_buffers(alone, 0) == 0


def test_what_saves_memory_saves_it() -> None:
    """Each step down the ladder needs less than the one before."""
    ladder = [
        paper(4, 16, "zero1"),
        paper(4, 8, "zero1"),
        paper(4, 8, "zero1", "--recompute-granularity", "full"),
        paper(4, 8, "zero3", "--recompute-granularity", "full"),
        paper(4, 8, "zero3_offload", "--recompute-granularity", "full"),
    ]
    totals = [memory.worst(run).total for run in ladder]
    assert totals == sorted(totals, reverse=True)
