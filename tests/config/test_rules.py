"""Every rule is broken once, alone, and its message read: what was given, where, and the nearest that is legal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.config.conftest import REPOSITORY, with_gpu
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.rules.model import INIT_METHODS, with_vocab_size
from tinyllama_mcore.config.schema import ConfigError, RopeScaling, RunConfig

DEBUG = ("--recipe", "tinyllama-debug")
FLOAT8 = ("--fp8-recipe", "rowwise_with_gw_hp")

# (rule, flags, JSON or None for zero1.json, processes, what the message says)
BROKEN_BY_FLAGS: list[tuple[str, tuple[str, ...], dict[str, Any] | None, int, str]] = [
    (
        "the sequence fits the positions",
        ("--seq-length", "2049"),
        None,
        1,
        "--seq-length 2049 is longer than the 2048 positions of tinyllama-1.1b (max_position_embeddings); at most 2048",
    ),
    (
        "tensor parallel divides the attention heads",
        ("--tensor-model-parallel-size", "3"),
        None,
        3,
        "--tensor-model-parallel-size 3 does not divide the 32 attention heads of tinyllama-1.1b; "
        "sizes that fit it: 1, 2, 4",
    ),
    (
        "tensor parallel divides the query groups",
        ("--tensor-model-parallel-size", "8"),
        None,
        8,
        "--tensor-model-parallel-size 8 does not divide the 4 query groups of tinyllama-1.1b",
    ),
    (
        "world = tensor x pipeline x context x data parallel",
        ("--tensor-model-parallel-size", "4"),
        None,
        6,
        "--tensor-model-parallel-size 4 needs a multiple of 4 processes, and the job has 6; nearest: 4 or 8",
    ),
    (
        "world = tensor x pipeline x context x data parallel",
        ("--pipeline-model-parallel-size", "2", "--context-parallel-size", "2"),
        None,
        2,
        "--pipeline-model-parallel-size 2 x --context-parallel-size 2 needs a multiple of 4 processes, and the job has "
        "2; nearest: 4",
    ),
    (
        "model chunks are at most the layers",
        ("--pipeline-model-parallel-size", "8", "--virtual-pipeline-model-parallel-size", "3"),
        None,
        8,
        "--pipeline-model-parallel-size 8 x --virtual-pipeline-model-parallel-size 3 are 24 model chunks, and "
        "tinyllama-1.1b has 22 layers; at most 22 chunks",
    ),
    (
        "virtual pipeline needs pipeline parallel",
        ("--virtual-pipeline-model-parallel-size", "2"),
        None,
        1,
        "--virtual-pipeline-model-parallel-size 2 needs --pipeline-model-parallel-size 2 or more, got 1; leave it out",
    ),
    (
        "the pipeline split adds up",
        ("--pipeline-model-parallel-size", "4", "--pipeline-num-layers", "6,6,6,6"),
        None,
        4,
        "--pipeline-num-layers 6,6,6,6 must be 4 numbers, one for each of 4 pipeline ranks x 1 chunks, each at least 1 "
        "and 22 together, the layers of tinyllama-1.1b; for example 5,6,6,5",
    ),
    (
        "the pipeline split adds up",
        ("--pipeline-num-layers", "11,11"),
        None,
        1,
        "--pipeline-num-layers 11,11 must be 1 numbers",
    ),
    (
        "the interleaved schedule takes whole groups of micro-batches",
        (
            *("--pipeline-model-parallel-size", "4", "--virtual-pipeline-model-parallel-size", "2"),
            *("--micro-batch-size", "8", "--global-batch-size", "48"),
        ),
        None,
        4,
        "needs a multiple of --pipeline-model-parallel-size 4 micro-batches an iteration, got 6; "
        "nearest --global-batch-size: 32 or 64",
    ),
    (
        "micro batch x data parallel divides every size of the ramp",
        (*DEBUG, "--micro-batch-size", "4", "--rampup-batch-size", "4", "12", "100"),
        None,
        2,
        "--rampup-batch-size 4 12 100: START and INCREMENT must be multiples of 8 = micro batch 4 x data parallel 2; "
        "nearest: START 8, INCREMENT 8 or 16",
    ),
    (
        "micro batch x data parallel divides every size of the ramp",
        (
            *(*DEBUG, "--pipeline-model-parallel-size", "2", "--virtual-pipeline-model-parallel-size", "2"),
            *("--micro-batch-size", "4", "--rampup-batch-size", "4", "4", "100"),
        ),
        None,
        2,
        "must be multiples of 8 = micro batch 4 x data parallel 1 x pipeline parallel 2; nearest: START 8, INCREMENT 8",
    ),
    (
        "ZeRO 3 needs pipeline parallel 1",
        (*DEBUG, "--pipeline-model-parallel-size", "2"),
        {"zero_optimization": {"stage": 3}},
        2,
        "--pipeline-model-parallel-size 2 needs ZeRO 2 or less: ZeRO 3 gathers parameters in an order that a pipeline "
        "breaks;",
    ),
    (
        "hybrid shard groups divide the ranks",
        DEBUG,
        {"fsdp": {"sharding_strategy": "hybrid_shard", "hybrid_shard_size": 3}},
        4,
        "fsdp.hybrid_shard_size is 3; it must divide the 4 ranks of data x context parallel: 1, 2, 4; best is the "
        "number of GPUs of a node",
    ),
    (
        "hybrid shard groups divide the ranks",
        DEBUG,
        {"fsdp": {"sharding_strategy": "hybrid_shard"}},
        2,
        "fsdp.hybrid_shard_size is missing; it must divide the 2 ranks",
    ),
    (
        "hybrid shard groups divide the ranks",
        DEBUG,
        {"fsdp": {"hybrid_shard_size": 2}},
        2,
        "fsdp.hybrid_shard_size is 2, but fsdp.sharding_strategy is full_shard; remove it",
    ),
    (
        "FSDP accumulates in fp32",
        DEBUG,
        {"fsdp": {}, "bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "bf16"}},
        1,
        "data_types.grad_accum_dtype is 'bf16', but FSDP reduces and accumulates in fp32",
    ),
    (
        "document masking needs context parallel 1",
        ("--inter-document-masking", "--context-parallel-size", "2"),
        None,
        2,
        "--inter-document-masking does not work with --context-parallel-size 2, which splits documents over ranks",
    ),
    (
        "global batch = micro batch x accumulation x data parallel",
        ("--micro-batch-size", "8"),
        None,
        6,
        "--global-batch-size 1024 is not a multiple of 48 = --micro-batch-size 8 x data parallel 6; "
        "nearest: 1008 or 1056",
    ),
    (
        "global batch = micro batch x accumulation x data parallel",
        (*DEBUG, "--micro-batch-size", "4"),
        None,
        8,
        "--global-batch-size 16 is not a multiple of 32 = --micro-batch-size 4 x data parallel 8; nearest: 32",
    ),
    (
        "gradient_accumulation_steps is what the batch makes it",
        DEBUG,
        {"gradient_accumulation_steps": 3, "zero_optimization": {"stage": 1}},
        1,
        "gradient_accumulation_steps is 3, but global batch 16 / (micro batch 4 x data parallel 1) is 4; "
        'write 4 or "auto"',
    ),
    (
        "sequence parallel needs tensor parallel",
        ("--sequence-parallel",),
        None,
        2,
        "--sequence-parallel needs --tensor-model-parallel-size 2 or more, got 1; leave it out",
    ),
    (
        "context and sequence parallel divide the sequence",
        ("--sequence-parallel", "--tensor-model-parallel-size", "2", "--seq-length", "2047"),
        None,
        2,
        "--seq-length 2047 is not a multiple of 2, which --sequence-parallel with --tensor-model-parallel-size 2 needs",
    ),
    (
        "context and sequence parallel divide the sequence",
        ("--context-parallel-size", "4", "--seq-length", "2044"),
        None,
        4,
        "--seq-length 2044 is not a multiple of 8, which --context-parallel-size 4 (two chunks a rank) needs; "
        "nearest: 2040 or 2048",
    ),
    (
        "the ZeRO stage is 0, 1, 2 or 3",
        DEBUG,
        {"zero_optimization": {"stage": 4}},
        1,
        "zero_optimization.stage is 4; it must be 0, 1, 2 or 3",
    ),
    (
        "ZeRO 0 trains in fp32",
        DEBUG,
        {"bf16": {"enabled": True}},
        1,
        "ZeRO stage 0 with bf16 computes a wrong first update in DeepSpeed; use ds_configs/zero1.json",
    ),
    (
        "overlap_comm needs ZeRO 2 or 3",
        DEBUG,
        {"zero_optimization": {"stage": 1, "overlap_comm": True}},
        1,
        "zero_optimization.overlap_comm is true at stage 1",
    ),
    (
        "gradient_predivide_factor needs reduce_scatter off with ZeRO 2 and 3",
        DEBUG,
        {"zero_optimization": {"stage": 2}, "gradient_predivide_factor": 2.0},
        1,
        "gradient_predivide_factor is 2.0, but ZeRO 2 with zero_optimization.reduce_scatter supports 1.0 only; "
        'write 1.0, or "reduce_scatter": false',
    ),
    (
        "prescale_gradients needs reduce_scatter off with ZeRO 2 and 3",
        DEBUG,
        {"zero_optimization": {"stage": 3, "reduce_scatter": True}, "prescale_gradients": True},
        1,
        "prescale_gradients is true, but ZeRO 3 with zero_optimization.reduce_scatter supports false only",
    ),
    (
        "offload_optimizer needs ZeRO 1, 2 or 3",
        DEBUG,
        {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
        1,
        "offload_optimizer needs zero_optimization.stage 1, 2 or 3, got 0; use ds_configs/zero3_offload.json",
    ),
    (
        "offload_param needs ZeRO 3",
        DEBUG,
        {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
        1,
        "offload_param needs zero_optimization.stage 3, got 2; use ds_configs/zero3_offload.json",
    ),
    (
        "fp32 accumulates in fp32",
        DEBUG,
        {"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "bf16"}},
        1,
        "data_types.grad_accum_dtype is 'bf16', but gradients are fp32 without bf16.enabled",
    ),
    (
        "fused layers are not compiled",
        ("--compile", "--transformer-impl", "fused"),
        None,
        1,
        "--transformer-impl fused has its own kernels and nothing to compile; leave --compile out",
    ),
    (
        "fused layers recompute all or nothing",
        ("--recompute-granularity", "selective", "--transformer-impl", "fused"),
        None,
        1,
        "--recompute-granularity selective does not apply; use full or none, or --transformer-impl local",
    ),
    (
        "a CUDA graph records fused layers of ZeRO-1 on one GPU a model",
        ("--cuda-graph", "--tensor-model-parallel-size", "2"),
        None,
        2,
        "--cuda-graph needs fused layers, bf16 with fp32 accumulation, ZeRO 1",
    ),
    (
        "compile needs sequence parallel off",
        ("--compile", "--tensor-model-parallel-size", "2", "--sequence-parallel"),
        None,
        2,
        "--compile does not work with --sequence-parallel, whose gathers in the backward pass do not compile",
    ),
    (
        "the learning rate is positive and finite",
        ("--lr", "0"),
        None,
        1,
        "--lr 0.0 must be above 0; the paper's is 4e-4",
    ),
    (
        "the schedule falls: 0 <= min_lr < lr",
        ("--min-lr", "4e-4"),
        None,
        1,
        "--min-lr 0.0004 (the recipe's, if not given) must be at least 0 and below --lr 0.0004",
    ),
    (
        "the schedule falls: 0 <= min_lr < lr",
        ("--lr", "1e-5"),
        None,
        1,
        "--min-lr 4e-05 (the recipe's, if not given) must be at least 0 and below --lr 1e-05, or the learning rate "
        "never falls; a tenth, as in the paper, is 1e-06",
    ),
    (
        "warm-up ends before the schedule does",
        ("--train-iters", "50"),
        None,
        1,
        "--lr-warmup-iters 2000 (the recipe's, if not given) must be below --train-iters 50; at most 49",
    ),
    (
        "AdamW's numbers are in range",
        DEBUG,
        {"zero_optimization": {"stage": 1}, "optimizer": {"type": "AdamW", "params": {"eps": 0}}},
        1,
        "adam_eps 0 above 0",
    ),
    (
        "blend weights are shares",
        ("--data-path", "-0.5", "a", "1.5", "b"),
        None,
        1,
        "--data-path: weights -0.5, 1.5 must not be negative, and at least one must be above 0",
    ),
    ("blend weights are shares", ("--data-path", "0", "a", "0", "b"), None, 1, "weights 0, 0 must not be negative"),
    ("blend weights are shares", ("--data-path", "nan", "a", "1", "b"), None, 1, "weights nan, 1 must not be"),
    ("blend weights are shares", ("--valid-data-path", "0", "a", "0", "b"), None, 1, "--valid-data-path: weights 0, 0"),
    ("validation data are evaluated", ("--valid-data-path", "a"), None, 1, "a is never read with --eval-interval 0"),
    (
        "each prefix has its two files",
        ("--valid-data-path", "nowhere/text", "--eval-interval", "1"),
        None,
        1,
        "--valid-data-path nowhere/text: nowhere/text.bin is missing",
    ),
    (
        "each prefix has its two files",
        ("--data-path", "nowhere/text"),
        None,
        1,
        "--data-path nowhere/text: nowhere/text.bin is missing; a dataset is the two files",
    ),
    (
        "each prefix has its two files",
        ("--data-path", "nowhere/text.bin"),
        None,
        1,
        "--data-path takes a prefix without the suffix: nowhere/text, not nowhere/text.bin",
    ),
    (
        "the tokenizer is there",
        ("--tokenizer-model", "nowhere/tokenizer.model"),
        None,
        1,
        "--tokenizer-model nowhere/tokenizer.model: no such file",
    ),
    (
        "the save directory can be written",
        ("--save", f"{__file__}/checkpoints"),
        None,
        1,
        "cannot be written; name a writable directory",
    ),
    (
        "--load holds a checkpoint",
        ("--load", "nowhere"),
        None,
        1,
        "--load nowhere: holds no checkpoint, and a run that was told to load never starts from zero",
    ),
    (
        "--save-interval needs --save",
        ("--save-interval", "100"),
        None,
        1,
        "--save-interval does nothing here, as this run keeps no checkpoints; add --save DIR",
    ),
    *(
        (f"{flag} needs --save", (flag,), None, 1, f"add --save DIR, or leave {flag} out")
        for flag in ("--allow-data-change", "--override-schedule", "--use-checkpoint-opt_param-scheduler")
    ),
    (
        "one schedule of the two",
        ("--save", "nowhere", "--override-opt_param-scheduler", "--use-checkpoint-opt_param-scheduler"),
        None,
        1,
        "give one of them",
    ),
    (
        "float8 is for fused layers in bf16",
        (*DEBUG, *FLOAT8),
        None,
        1,
        "--fp8-recipe rowwise_with_gw_hp needs fused layers in bf16, and this run has fused layers in fp32",
    ),
    (
        "float8 leaves a layer that is not bf16",
        (*FLOAT8, "--num-layers-at-start-in-bf16", "20", "--num-layers-at-end-in-bf16", "2"),
        None,
        1,
        "--num-layers-at-start-in-bf16 20 and --num-layers-at-end-in-bf16 2 leave none of 22 layers for --fp8-recipe "
        "rowwise_with_gw_hp; together they may be 21",
    ),
    (
        "--num-layers-at-start-in-bf16 needs --fp8-recipe",
        ("--num-layers-at-start-in-bf16", "1"),
        None,
        1,
        "--num-layers-at-start-in-bf16 does nothing here, as no layer is in float8; add --fp8-recipe",
    ),
    (
        "--num-layers-at-end-in-bf16 needs --fp8-recipe",
        ("--num-layers-at-end-in-bf16", "1"),
        None,
        1,
        "--num-layers-at-end-in-bf16 does nothing here, as no layer is in float8; add --fp8-recipe",
    ),
    ("--profile needs --profile-dir", ("--profile", "3:4"), None, 1, "add --profile-dir DIR, or leave --profile out"),
    (
        "--profile-dir needs --profile",
        ("--profile-dir", "x"),
        None,
        1,
        "no iteration is profiled; add --profile A:B",
    ),
    (
        "WSD says how long it decays",
        (*DEBUG, "--lr-decay-style", "WSD"),
        None,
        1,
        "--lr-decay-style WSD needs --lr-wsd-decay-iters, the iterations of its decay; at most 90, and usual is a "
        "tenth of the run: 10",
    ),
    (
        "the decay of WSD begins after warm-up",
        (*DEBUG, "--lr-decay-style", "WSD", "--lr-wsd-decay-iters", "91"),
        None,
        1,
        "--lr-wsd-decay-iters 91 is not within 1 to 90, what --train-iters 100 leaves after --lr-warmup-iters 10; "
        "nearest: 90",
    ),
    (
        "the decay of WSD begins after warm-up",
        (*DEBUG, "--lr-decay-style", "WSD", "--lr-wsd-decay-iters", "60", "--lr-decay-iters", "50"),
        None,
        1,
        "--lr-wsd-decay-iters 60 is not within 1 to 40, what --lr-decay-iters 50 leaves",
    ),
    (
        "--lr-wsd-decay-iters needs --lr-decay-style",
        (*DEBUG, "--lr-wsd-decay-iters", "9"),
        None,
        1,
        "--lr-wsd-decay-iters does nothing here, as the learning rate follows another style; add --lr-decay-style WSD",
    ),
    (
        "--lr-wsd-decay-style needs --lr-decay-style",
        (*DEBUG, "--lr-decay-style", "linear", "--lr-wsd-decay-style", "linear"),
        None,
        1,
        "add --lr-decay-style WSD, or leave --lr-wsd-decay-style out",
    ),
    (
        "a constant rate has no end",
        (*DEBUG, "--lr-decay-style", "constant", "--lr-decay-iters", "50"),
        None,
        1,
        "--lr-decay-iters 50 does nothing here, as --lr-decay-style constant never falls; leave it out",
    ),
    (
        "profiled iterations are the run's",
        ("--profile", "9:11", "--profile-dir", "x", "--train-iters", "10", "--lr-warmup-iters", "2"),
        None,
        1,
        "--profile 9:11 must lie within the run's iterations, 1 to 10; nearest: 9:10",
    ),
    ("--overwrite needs --metrics-file", ("--overwrite",), None, 1, "add --metrics-file FILE, or leave"),
    ("--keep-latest needs --save", ("--keep-latest", "2"), None, 1, "add --save DIR, or leave --keep-latest out"),
    ("--async-save needs --save", ("--async-save",), None, 1, "add --save DIR, or leave --async-save out"),
    (
        "--async-save needs --save-interval",
        ("--async-save", "--save", "nowhere"),
        None,
        1,
        "the only checkpoint is the last one, and the run waits for it; add --save-interval N",
    ),
    (
        "--eval-iters needs --eval-interval",
        ("--eval-iters", "2"),
        None,
        1,
        "--eval-iters does nothing here, as this run is never evaluated; add --eval-interval N",
    ),
    (
        "--tokenizer-model needs --data-path",
        ("--tokenizer-model", __file__),
        None,
        1,
        "--tokenizer-model does nothing here, as the built-in corpus brings its own tokenizer; add --data-path PREFIX",
    ),
    (
        "document masking in bf16 on a GPU is flash attention",
        ("--inter-document-masking", "--attention-backend", "cudnn"),
        None,
        1,
        "--attention-backend cudnn does nothing with --inter-document-masking in bf16 on a GPU",
    ),
    (
        "flash and cudnn attention need bf16",
        (*DEBUG, "--attention-backend", "flash"),
        None,
        1,
        "--attention-backend flash computes in bf16 only, and this run is in fp32",
    ),
    (
        "csv_monitor can be written",
        DEBUG,
        {"zero_optimization": {"stage": 1}, "csv_monitor": {"enabled": True, "output_path": "/dev/null"}},
        1,
        "csv_monitor would write to /dev/null/DeepSpeedJobName, which cannot be written; give it a writable",
    ),
]

# (rule, block of the run, its change, message): what only a recipe file can say
BROKEN_BY_RECIPE: list[tuple[str, str, dict[str, Any], str]] = [
    (
        "the ramp ends at the global batch",
        "batch",
        {"rampup_batch_size": (32, 24, 1000)},
        "steps of 24 do not lead from 32 to --global-batch-size 1024; nearest INCREMENT that does: 31",
    ),
    ("sizes are at least 1", "model", {"num_layers": 0}, "num_layers is 0 in recipe tinyllama-1.1b"),
    ("the norm's epsilon and RoPE's base are above 0", "model", {"rotary_base": 0.0}, "rotary_base 0; both must be"),
    ("the norm's epsilon and RoPE's base are above 0", "model", {"norm_epsilon": -1.0}, "is -1 and rotary_base 10000"),
    (
        "switches have a value that they know",
        "optimizer",
        {"lr_index": "step"},
        "lr_index is 'step' in recipe tinyllama-1.1b; it must be one of iteration, micro_iteration",
    ),
    ("switches have a value that they know", "optimizer", {"weight_decay_on": "norms"}, "one of all, matrices"),
    ("switches have a value that they know", "model", {"init_method": "xavier"}, "megatron, tinyllama, torch"),
    (
        "attention heads divide the hidden size, into heads of even width",
        "model",
        {"num_attention_heads": 24},
        "hidden_size 2048 of tinyllama-1.1b is not a multiple of 2 x num_attention_heads 24; the nearest above: 2064",
    ),
    (
        "RoPE scaling is one that is known",
        "model",
        {"rope_scaling": RopeScaling(rope_type="yarn", factor=4.0)},
        "rope_type must be linear or llama3, factor at least 1",
    ),
    (
        "RoPE scaling is one that is known",
        "model",
        {"rope_scaling": RopeScaling(rope_type="llama3", factor=4.0, low_freq_factor=4.0)},
        "low_freq_factor below high_freq_factor",
    ),
    (
        "query groups divide the attention heads",
        "model",
        {"num_query_groups": 5},
        "num_query_groups 5 of tinyllama-1.1b does not divide its 32 attention heads; legal: 1, 2, 4, 8, 16, 32",
    ),
    (
        "warm-up ends before the schedule does",
        "optimizer",
        {"lr_decay_iters": 1000},
        "--lr-warmup-iters 2000 (the recipe's, if not given) must be below --lr-decay-iters 1000; at most 999",
    ),
]


def broken(run: RunConfig, gpu: Callable[[], bool] = with_gpu) -> tuple[str, str]:
    """Name of the first rule that the run breaks, and the message that `check` gives."""
    with pytest.raises(ConfigError) as told:
        legality.check(run, has_gpu=gpu)
    return next(rule.name for rule in legality.rows(gpu) if not rule.holds(run)), str(told.value)


@pytest.mark.parametrize(("name", "argv", "ds", "world", "expected"), BROKEN_BY_FLAGS)
def test_a_wrong_command_line_is_refused(
    make_run: Callable[..., RunConfig],
    name: str,
    argv: tuple[str, ...],
    ds: dict[str, Any] | None,
    world: int,
    expected: str,
) -> None:
    """By the rule that it breaks, in one line."""
    rule, message = broken(make_run(*argv, ds=ds, world=world, judge=False))
    assert rule == name
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "block", "change", "expected"), BROKEN_BY_RECIPE)
def test_a_wrong_recipe_is_refused(
    make_run: Callable[..., RunConfig], name: str, block: str, change: dict[str, Any], expected: str
) -> None:
    """What only a recipe file can say."""
    run = make_run()
    rule, message = broken(replace(run, **{block: replace(getattr(run, block), **change)}))
    assert rule == name
    assert expected in message


def test_the_feed_forward_is_cut_too(make_run: Callable[..., RunConfig]) -> None:
    """Each of gate and up is cut on its own."""
    run = make_run("--tensor-model-parallel-size", "4", world=4)
    rule, message = broken(replace(run, model=replace(run.model, ffn_hidden_size=5630)))
    assert rule == "tensor parallel divides the columns of the feed-forward"
    assert "5630" in message
    assert message.endswith("sizes that fit it: 1, 2")


def test_float8_sizes_of_a_rank(make_run: Callable[..., RunConfig]) -> None:
    """Each rank's own, so that more tensor parallel ranks may be too many."""
    run = make_run(*FLOAT8)
    rule, message = broken(replace(run, model=replace(run.model, ffn_hidden_size=5640)))
    assert rule == "float8 multiplies sizes that 16 divides"
    assert "a rank has hidden 2,048, heads 2,048, heads, keys and values 2,560, feed-forward 5,640" in message


def test_float8_on_an_older_gpu(make_run: Callable[..., RunConfig]) -> None:
    """Refused before anything is multiplied; without a GPU the same numbers are multiplied in fp32."""
    run = make_run(*FLOAT8)
    with pytest.raises(ConfigError, match=r"needs a GPU that multiplies in float8 \(Ada, Hopper or later\)"):
        legality.check(run, has_gpu=with_gpu, has_float8=lambda: False)
    legality.check(run, has_gpu=lambda: False, has_float8=lambda: False)


def test_attention_on_a_cpu(make_run: Callable[..., RunConfig]) -> None:
    """Refused, not replaced in silence."""
    run = make_run("--attention-backend", "cudnn", "--recipe", "tinyllama-1.1b")
    rule, message = broken(run, gpu=lambda: False)
    assert rule == "flash and cudnn attention need a GPU"
    assert message == "--attention-backend cudnn needs a GPU, and there is none here; use sdpa or auto"


def test_what_holds_anyway_may_be_said(make_run: Callable[..., RunConfig]) -> None:
    """Defaults written out in a script, and a kernel that is used."""
    make_run("--save-interval", "0", "--keep-latest", "0", "--eval-iters", "10", "--inter-document-masking")
    make_run("--inter-document-masking", "--attention-backend", "flash")
    make_run("--inter-document-masking", "--attention-backend", "sdpa", gpu=False)


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
@pytest.mark.parametrize("sharding", [{"zero_optimization": {"stage": 1}}, {"fsdp": {}}], ids=["DeepSpeed", "FSDP"])
def test_a_monitor_that_is_not_installed(
    make_run: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    package: str,
    sharding: dict[str, Any],
) -> None:
    """With the standard library alone to be found; a folder of that name, as wandb makes one, is no package."""
    (tmp_path / package).mkdir()
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "path", [*(p for p in sys.path if "-packages" not in p), str(tmp_path)])
    run = make_run(*DEBUG, ds={**sharding, package: {"enabled": True}}, judge=False)
    rule, message = broken(run)
    assert rule == f"{package} is installed where it is asked for"
    assert f"needs the package {package}, which is not installed: pip install {package}, or write" in message


def test_rows_of_another_run_are_kept(make_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    """A start from zero on a csv_monitor that holds rows is refused; one that goes on from a checkpoint is not."""
    monitor = {"enabled": True, "output_path": str(tmp_path), "job_name": "a"}
    ds = {"zero_optimization": {"stage": 1}, "csv_monitor": monitor}
    make_run(*DEBUG, ds=ds)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "lm_loss.csv").write_text("step,lm loss\n")
    rule, message = broken(make_run(*DEBUG, ds=ds, judge=False))
    assert rule == "csv_monitor keeps what another run wrote"
    assert f"{tmp_path}/a, which holds another run's rows" in message
    (tmp_path / "iter_0000004").mkdir()
    (tmp_path / "iter_0000004" / "manifest.json").touch()
    make_run(*DEBUG, "--load", str(tmp_path), ds=ds)


def test_no_rule_is_left_untried() -> None:
    """A new row in the table needs a row here."""
    tried = {row[0] for row in (*BROKEN_BY_FLAGS, *BROKEN_BY_RECIPE)}
    tried |= {"csv_monitor keeps what another run wrote"}
    tried |= {f"{package} is installed where it is asked for" for package in ("tensorboard", "wandb")}
    tried |= {"tensor parallel divides the columns of the feed-forward", "flash and cudnn attention need a GPU"}
    tried |= {"every value is one that its flag takes"}  # test_compose.py: a command line is read by its flags
    tried |= {"float8 multiplies sizes that 16 divides", "float8 needs an Ada or Hopper GPU"}
    assert tried == {rule.name for rule in legality.rows(with_gpu)}


def test_the_documentation_lists_every_rule() -> None:
    """docs/reference/rules.md names the rows of the table, in its order."""
    listed = (REPOSITORY / "docs/reference/rules.md").read_text()
    assert re.findall(r"^- (.+)$", listed, flags=re.MULTILINE) == [rule.name for rule in legality.rows(with_gpu)]


def test_whether_there_is_a_gpu_is_asked_only_where_it_matters(make_run: Callable[..., RunConfig]) -> None:
    """Asking costs the import of torch."""

    def never() -> bool:
        raise AssertionError("asked, which would have imported torch")

    legality.check(make_run("--recipe", "tinyllama-debug"), has_gpu=never)


def test_data_and_checkpoints_that_are_there_pass(make_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    """And judging them writes nothing."""
    for name in ("text.bin", "text.idx", "tokenizer.model", "iter_0000004/manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    argv = ("--data-path", f"{tmp_path}/text", "--tokenizer-model", f"{tmp_path}/tokenizer.model")
    make_run(*argv, "--load", str(tmp_path), "--save", f"{tmp_path}/new/below")
    assert not (tmp_path / "new").exists()  # judging writes nothing


def test_half_a_dataset_is_refused(make_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    """The missing file is named."""
    (tmp_path / "text.bin").touch()
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/text.idx is missing")):
        make_run("--data-path", f"{tmp_path}/text")


def test_the_vocabulary_is_the_tokenizers_or_the_recipes(make_run: Callable[..., RunConfig]) -> None:
    """A recipe that fixes it keeps its rows, and refuses a tokenizer with more pieces."""
    assert with_vocab_size(make_run("--recipe", "tinyllama-debug"), 1000, "t.model").model.vocab_size == 1000
    large = make_run("--recipe", "tinyllama-1.1b")
    assert with_vocab_size(large, 32000, "t.model") == large
    some = with_vocab_size(large, 31_997, "t.model")
    assert some.model.vocab_size == 32000
    assert some.notes[-1].startswith("vocab_size 32,000 exceeds the tokenizer's 31,997 pieces")
    with pytest.raises(
        ConfigError, match=r"the tokenizer t\.model has 32,001 pieces, but recipe .* has vocab_size 32,000"
    ):
        with_vocab_size(large, 32_001, "t.model")


def test_the_initializers_are_those_of_the_model() -> None:
    """The names here and the table there are the same."""
    from tinyllama_mcore.model.initialize import METHODS

    assert tuple(sorted(METHODS)) == INIT_METHODS
