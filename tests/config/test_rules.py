"""Every rule is broken once, alone, and its message read: what was given, where, and the nearest that is legal."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.config.conftest import REPOSITORY, with_gpu
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.rules.model import INIT_METHODS, with_vocab_size
from tinyllama_mcore.config.schema import RopeScaling, RunConfig

DEBUG = ("--recipe", "tinyllama-debug")
FLOAT8 = ("--fp8-recipe", "rowwise_with_gw_hp")


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A command line that breaks a rule."""

    rule: str
    argv: tuple[str, ...]
    ds: dict[str, Any] | None = None
    """The DeepSpeed JSON; None: zero1.json."""
    world: int = 1
    """Processes."""
    says: str
    """What the message has to hold."""


@dataclass(frozen=True, kw_only=True)
class WrongRecipe:
    """A change of a run that only a recipe file can make, and that breaks a rule."""

    rule: str
    block: str
    change: dict[str, Any]
    says: str
    """What the message has to hold."""


BROKEN_BY_FLAGS: list[Refused] = [
    Refused(
        rule="the sequence fits the positions",
        argv=("--seq-length", "2049"),
        says=(
            "--seq-length 2049 is longer than the 2048 positions of tinyllama-1.1b "
            "(max_position_embeddings); at most 2048"
        ),
    ),
    Refused(
        rule="tensor parallel divides the attention heads",
        argv=("--tensor-model-parallel-size", "3"),
        world=3,
        says=(
            "--tensor-model-parallel-size 3 does not divide the 32 attention heads of tinyllama-1.1b; "
            "sizes that fit it: 1, 2, 4"
        ),
    ),
    Refused(
        rule="tensor parallel divides the query groups",
        argv=("--tensor-model-parallel-size", "8"),
        world=8,
        says="--tensor-model-parallel-size 8 does not divide the 4 query groups of tinyllama-1.1b",
    ),
    Refused(
        rule="world = tensor x pipeline x context x data parallel",
        argv=("--tensor-model-parallel-size", "4"),
        world=6,
        says="--tensor-model-parallel-size 4 needs a multiple of 4 processes, and the job has 6; nearest: 4 or 8",
    ),
    Refused(
        rule="world = tensor x pipeline x context x data parallel",
        argv=("--pipeline-model-parallel-size", "2", "--context-parallel-size", "2"),
        world=2,
        says=(
            "--pipeline-model-parallel-size 2 x --context-parallel-size 2 needs a multiple of 4 "
            "processes, and the job has "
            "2; nearest: 4"
        ),
    ),
    Refused(
        rule="model chunks are at most the layers",
        argv=("--pipeline-model-parallel-size", "8", "--virtual-pipeline-model-parallel-size", "3"),
        world=8,
        says=(
            "--pipeline-model-parallel-size 8 x --virtual-pipeline-model-parallel-size 3 are 24 model chunks, and "
            "tinyllama-1.1b has 22 layers; at most 22 chunks"
        ),
    ),
    Refused(
        rule="virtual pipeline needs pipeline parallel",
        argv=("--virtual-pipeline-model-parallel-size", "2"),
        says=(
            "--virtual-pipeline-model-parallel-size 2 needs --pipeline-model-parallel-size 2 or more, "
            "got 1; leave it out"
        ),
    ),
    Refused(
        rule="the pipeline split adds up",
        argv=("--pipeline-model-parallel-size", "4", "--pipeline-num-layers", "6,6,6,6"),
        world=4,
        says=(
            "--pipeline-num-layers 6,6,6,6 must be 4 numbers, one for each of 4 pipeline ranks x 1 "
            "chunks, each at least 1 "
            "and 22 together, the layers of tinyllama-1.1b; for example 5,6,6,5"
        ),
    ),
    Refused(
        rule="the pipeline split adds up",
        argv=("--pipeline-num-layers", "11,11"),
        says="--pipeline-num-layers 11,11 must be 1 numbers",
    ),
    Refused(
        rule="the interleaved schedule takes whole groups of micro-batches",
        argv=(
            *("--pipeline-model-parallel-size", "4", "--virtual-pipeline-model-parallel-size", "2"),
            *("--micro-batch-size", "8", "--global-batch-size", "48"),
        ),
        world=4,
        says=(
            "needs a multiple of --pipeline-model-parallel-size 4 micro-batches an iteration, got 6; "
            "nearest --global-batch-size: 32 or 64"
        ),
    ),
    Refused(
        rule="micro batch x data parallel divides every size of the ramp",
        argv=(*DEBUG, "--micro-batch-size", "4", "--rampup-batch-size", "4", "12", "100"),
        world=2,
        says=(
            "--rampup-batch-size 4 12 100: START and INCREMENT must be multiples of 8 = micro batch 4 x data "
            "parallel 2; nearest: START 8, INCREMENT 8 or 16"
        ),
    ),
    Refused(
        rule="micro batch x data parallel divides every size of the ramp",
        argv=(
            *(*DEBUG, "--pipeline-model-parallel-size", "2", "--virtual-pipeline-model-parallel-size", "2"),
            *("--micro-batch-size", "4", "--rampup-batch-size", "4", "4", "100"),
        ),
        world=2,
        says=(
            "must be multiples of 8 = micro batch 4 x data parallel 1 x pipeline parallel 2; nearest: "
            "START 8, INCREMENT 8"
        ),
    ),
    Refused(
        rule="WSD says how long it decays",
        argv=(*DEBUG, "--lr-decay-style", "WSD"),
        says=(
            "--lr-decay-style WSD needs --lr-wsd-decay-iters, the iterations of its decay; at most 90, and usual is a "
            "tenth of the run: 10"
        ),
    ),
    Refused(
        rule="the decay of WSD begins after warm-up",
        argv=(*DEBUG, "--lr-decay-style", "WSD", "--lr-wsd-decay-iters", "91"),
        says=(
            "--lr-wsd-decay-iters 91 is not within 1 to 90, what --train-iters 100 leaves after --lr-warmup-iters 10; "
            "nearest: 90"
        ),
    ),
    Refused(
        rule="the decay of WSD begins after warm-up",
        argv=(*DEBUG, "--lr-decay-style", "WSD", "--lr-wsd-decay-iters", "60", "--lr-decay-iters", "50"),
        says=("--lr-wsd-decay-iters 60 is not within 1 to 40, what --lr-decay-iters 50 leaves"),
    ),
    Refused(
        rule="--lr-wsd-decay-iters needs --lr-decay-style WSD",
        argv=(*DEBUG, "--lr-wsd-decay-iters", "9"),
        says=(
            "--lr-wsd-decay-iters does nothing here, because the learning rate follows another style; add "
            "--lr-decay-style WSD"
        ),
    ),
    Refused(
        rule="--lr-wsd-decay-style needs --lr-decay-style WSD",
        argv=(*DEBUG, "--lr-decay-style", "linear", "--lr-wsd-decay-style", "linear"),
        says=("add --lr-decay-style WSD, or leave --lr-wsd-decay-style out"),
    ),
    Refused(
        rule="a constant rate has no end",
        argv=(*DEBUG, "--lr-decay-style", "constant", "--lr-decay-iters", "50"),
        says=("--lr-decay-iters 50 does nothing here, as --lr-decay-style constant never falls; leave it out"),
    ),
    Refused(
        rule="quack computes SwiGLU of fused layers in bf16 on a Hopper GPU",
        argv=(*DEBUG, "--swiglu-backend", "quack"),
        says="--swiglu-backend quack: it needs ",
    ),
    Refused(
        rule="ZeRO 3 needs pipeline parallel 1",
        argv=(*DEBUG, "--pipeline-model-parallel-size", "2"),
        ds={"zero_optimization": {"stage": 3}},
        world=2,
        says=(
            "--pipeline-model-parallel-size 2 needs ZeRO 2 or less: ZeRO 3 gathers parameters in an "
            "order that a pipeline "
            "breaks;"
        ),
    ),
    Refused(
        rule="hybrid shard groups divide the ranks",
        argv=DEBUG,
        ds={"fsdp": {"sharding_strategy": "hybrid_shard", "hybrid_shard_size": 3}},
        world=4,
        says=(
            "fsdp.hybrid_shard_size is 3; it must divide the 4 ranks of data x context parallel: 1, 2, 4; best is the "
            "number of GPUs of a node"
        ),
    ),
    Refused(
        rule="hybrid shard groups divide the ranks",
        argv=DEBUG,
        ds={"fsdp": {"sharding_strategy": "hybrid_shard"}},
        world=2,
        says="fsdp.hybrid_shard_size is missing; it must divide the 2 ranks",
    ),
    Refused(
        rule="hybrid shard groups divide the ranks",
        argv=DEBUG,
        ds={"fsdp": {"hybrid_shard_size": 2}},
        world=2,
        says="fsdp.hybrid_shard_size is 2, but fsdp.sharding_strategy is full_shard; remove it",
    ),
    Refused(
        rule="FSDP accumulates in fp32",
        argv=DEBUG,
        ds={"fsdp": {}, "bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "bf16"}},
        says="data_types.grad_accum_dtype is 'bf16', but FSDP reduces and accumulates in fp32",
    ),
    Refused(
        rule="document masking needs context parallel 1",
        argv=("--inter-document-masking", "--context-parallel-size", "2"),
        world=2,
        says="--inter-document-masking does not work with --context-parallel-size 2, which splits documents over ranks",
    ),
    Refused(
        rule="cudnn attention needs context parallel 1",
        argv=("--recipe", "tinyllama-1.1b", "--attention-backend", "cudnn", "--context-parallel-size", "2"),
        world=2,
        says="--attention-backend cudnn does not work with --context-parallel-size 2: a rank has fewer queries than",
    ),
    Refused(
        rule="global batch = micro batch x accumulation x data parallel",
        argv=("--micro-batch-size", "8"),
        world=6,
        says=(
            "--global-batch-size 1024 is not a multiple of 48 = --micro-batch-size 8 x data parallel 6; "
            "nearest: 1008 or 1056"
        ),
    ),
    Refused(
        rule="global batch = micro batch x accumulation x data parallel",
        argv=(*DEBUG, "--micro-batch-size", "4"),
        world=8,
        says="--global-batch-size 16 is not a multiple of 32 = --micro-batch-size 4 x data parallel 8; nearest: 32",
    ),
    Refused(
        rule="gradient_accumulation_steps is what the batch makes it",
        argv=DEBUG,
        ds={"gradient_accumulation_steps": 3, "zero_optimization": {"stage": 1}},
        says=(
            "gradient_accumulation_steps is 3, but global batch 16 / (micro batch 4 x data parallel 1) is 4; "
            'write 4 or "auto"'
        ),
    ),
    Refused(
        rule="sequence parallel needs tensor parallel",
        argv=("--sequence-parallel",),
        world=2,
        says="--sequence-parallel needs --tensor-model-parallel-size 2 or more, got 1; leave it out",
    ),
    Refused(
        rule="context and sequence parallel divide the sequence",
        argv=("--sequence-parallel", "--tensor-model-parallel-size", "2", "--seq-length", "2047"),
        world=2,
        says=(
            "--seq-length 2047 is not a multiple of 2, which --sequence-parallel with "
            "--tensor-model-parallel-size 2 needs"
        ),
    ),
    Refused(
        rule="context and sequence parallel divide the sequence",
        argv=("--context-parallel-size", "4", "--seq-length", "2044"),
        world=4,
        says=(
            "--seq-length 2044 is not a multiple of 8, which --context-parallel-size 4 (two chunks a rank) needs; "
            "nearest: 2040 or 2048"
        ),
    ),
    Refused(
        rule="the ZeRO stage is 0, 1, 2 or 3",
        argv=DEBUG,
        ds={"zero_optimization": {"stage": 4}},
        says="zero_optimization.stage is 4; it must be 0, 1, 2 or 3",
    ),
    Refused(
        rule="ZeRO 0 trains in fp32",
        argv=DEBUG,
        ds={"bf16": {"enabled": True}},
        says="ZeRO stage 0 with bf16 computes a wrong first update in DeepSpeed; use --deepspeed_config zero1",
    ),
    Refused(
        rule="overlap_comm needs ZeRO 2 or 3",
        argv=DEBUG,
        ds={"zero_optimization": {"stage": 1, "overlap_comm": True}},
        says="zero_optimization.overlap_comm is true at stage 1",
    ),
    Refused(
        rule="gradient_predivide_factor needs reduce_scatter off with ZeRO 2 and 3",
        argv=DEBUG,
        ds={"zero_optimization": {"stage": 2}, "gradient_predivide_factor": 2.0},
        says=(
            "gradient_predivide_factor is 2.0, but ZeRO 2 with zero_optimization.reduce_scatter supports 1.0 only; "
            'write 1.0, or "reduce_scatter": false'
        ),
    ),
    Refused(
        rule="prescale_gradients needs reduce_scatter off with ZeRO 2 and 3",
        argv=DEBUG,
        ds={"zero_optimization": {"stage": 3, "reduce_scatter": True}, "prescale_gradients": True},
        says="prescale_gradients is true, but ZeRO 3 with zero_optimization.reduce_scatter supports false only",
    ),
    Refused(
        rule="offload_optimizer needs ZeRO 1, 2 or 3",
        argv=DEBUG,
        ds={"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
        says="offload_optimizer needs zero_optimization.stage 1, 2 or 3, got 0; use --deepspeed_config zero3_offload",
    ),
    Refused(
        rule="offload_param needs ZeRO 3",
        argv=DEBUG,
        ds={"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
        says="offload_param needs zero_optimization.stage 3, got 2; use --deepspeed_config zero3_offload",
    ),
    Refused(
        rule="fp32 accumulates in fp32",
        argv=DEBUG,
        ds={"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "bf16"}},
        says="data_types.grad_accum_dtype is 'bf16', but gradients are fp32 without bf16.enabled",
    ),
    Refused(
        rule="fused layers are not compiled",
        argv=("--compile", "--transformer-impl", "fused"),
        says="--transformer-impl fused has its own kernels and nothing to compile; leave --compile out",
    ),
    Refused(
        rule="fused layers recompute all or nothing",
        argv=("--recompute-granularity", "selective", "--transformer-impl", "fused"),
        says="--recompute-granularity selective does not apply to --transformer-impl fused",
    ),
    Refused(
        rule="a CUDA graph records fused layers of ZeRO-1 whose passes need no NCCL",
        argv=("--cuda-graph", "--tensor-model-parallel-size", "4"),
        world=4,
        says="--cuda-graph needs fused layers, bf16 with fp32 accumulation, ZeRO 1",
    ),
    Refused(
        rule="a CUDA graph records fused layers of ZeRO-1 whose passes need no NCCL",
        argv=("--cuda-graph", "--tensor-model-parallel-size", "2", "--no-tp-comm-overlap"),
        world=2,
        says="tensor parallel 1 (or 2 where GPUs exchange copies)",
    ),
    Refused(
        rule="a CUDA graph records fused layers of ZeRO-1 whose passes need no NCCL",
        argv=("--cuda-graph", "--recipe", "tinyllama-1.1b"),
        ds={"zero_optimization": {"stage": 1}, "communication_data_type": "bf16"},
        says="a plain mean of gradients in fp32 (communication_data_type, prescale_gradients)",
    ),
    Refused(
        rule="cudnn attention adds gradients up in no fixed order",
        argv=("--attention-backend", "cudnn", "--deterministic-mode"),
        says="--attention-backend cudnn has no part in --deterministic-mode; use auto or flash",
    ),
    Refused(
        rule="sums of tensor-parallel GPUs beside products are of two that see each other's memory",
        argv=("--tp-comm-overlap", "--tensor-model-parallel-size", "4"),
        world=4,
        says=(
            "--tp-comm-overlap needs fused layers in bf16 without norms of heads, and tensor parallel 2 without "
            "sequence, pipeline and context parallelism; leave it out"
        ),
    ),
    Refused(
        rule="compile needs sequence parallel off",
        argv=("--compile", "--tensor-model-parallel-size", "2", "--sequence-parallel"),
        world=2,
        says=(
            "--compile does not work with --sequence-parallel, whose communication in the backward pass "
            "does not compile"
        ),
    ),
    Refused(
        rule="the learning rate is positive and finite",
        argv=("--lr", "0"),
        says="--lr 0.0 must be above 0; the paper's is 4e-4",
    ),
    Refused(
        rule="the schedule falls: 0 <= min_lr < lr",
        argv=("--min-lr", "4e-4"),
        says="--min-lr 0.0004 (the recipe's, if not given) must be at least 0 and below --lr 0.0004",
    ),
    Refused(
        rule="the schedule falls: 0 <= min_lr < lr",
        argv=("--lr", "1e-5"),
        says=(
            "--min-lr 4e-05 (the recipe's, if not given) must be at least 0 and below --lr 1e-05, or the learning rate "
            "never falls; a tenth of --lr, as in the paper, is 1e-06"
        ),
    ),
    Refused(
        rule="warm-up ends before the schedule does",
        argv=("--train-iters", "50"),
        says="--lr-warmup-iters 2000 (the recipe's, if not given) must be below --train-iters 50; at most 49",
    ),
    Refused(
        rule="AdamW's numbers are in range",
        argv=DEBUG,
        ds={"zero_optimization": {"stage": 1}, "optimizer": {"type": "AdamW", "params": {"eps": 0}}},
        says="adam_eps 0 above 0",
    ),
    Refused(
        rule="blend weights are shares",
        argv=("--data-path", "-0.5", "a", "1.5", "b"),
        says="--data-path: weights -0.5, 1.5 must not be negative, and at least one must be above 0",
    ),
    Refused(
        rule="blend weights are shares",
        argv=("--data-path", "0", "a", "0", "b"),
        says="weights 0, 0 must not be negative",
    ),
    Refused(
        rule="every number is finite",
        argv=("--data-path", "nan", "a", "1", "b"),
        says="data.blend[0][0] is nan",
    ),
    Refused(
        rule="blend weights are shares",
        argv=("--valid-data-path", "0", "a", "0", "b"),
        says="--valid-data-path: weights 0, 0",
    ),
    Refused(
        rule="later blends follow one another within the run",
        argv=(*DEBUG, "--data-path", "a", "--data-path-from", "100", "b"),
        says="--data-path-from 100 begins at sample 1,600, and must begin after the blend before it and before the "
        "run's end: after iteration 1 at the earliest, 99 at the latest",
    ),
    Refused(
        rule="later blends follow one another within the run",
        argv=(*DEBUG, "--data-path", "a", "--data-path-from", "50", "b", "--data-path-from", "50", "c"),
        says="--data-path-from 50 begins at sample 800, and must begin after the blend before it and before the run's "
        "end: after iteration 51 at the earliest, 99 at the latest",
    ),
    Refused(
        rule="a later blend follows data that were named",
        argv=(*DEBUG, "--data-path-from", "50", "b"),
        says="--data-path-from needs --data-path",
    ),
    Refused(
        rule="blend weights are shares",
        argv=(*DEBUG, "--data-path", "a", "--data-path-from", "50", "-1", "b", "0", "c"),
        says="--data-path-from: weights -1, 0 must not be negative",
    ),
    Refused(
        rule="validation data are evaluated",
        argv=("--valid-data-path", "a"),
        says="a is never read with --eval-interval 0",
    ),
    Refused(
        rule="each prefix has its two files",
        argv=("--valid-data-path", "nowhere/text", "--eval-interval", "1"),
        says="--valid-data-path nowhere/text: nowhere/text.bin is missing",
    ),
    Refused(
        rule="each prefix has its two files",
        argv=("--data-path", "nowhere/text"),
        says="--data-path nowhere/text: nowhere/text.bin is missing; a dataset is the two files",
    ),
    Refused(
        rule="each prefix has its two files",
        argv=("--data-path", "nowhere/text.bin"),
        says="--data-path takes a prefix without the suffix: nowhere/text, not nowhere/text.bin",
    ),
    Refused(
        rule="the tokenizer is there",
        argv=("--tokenizer-model", "nowhere/tokenizer.model"),
        says="--tokenizer-model nowhere/tokenizer.model: no such file",
    ),
    Refused(
        rule="the save directory can be written",
        argv=("--save", f"{__file__}/checkpoints"),
        says="cannot be written; name a writable directory",
    ),
    Refused(
        rule="--load holds a checkpoint",
        argv=("--load", "nowhere"),
        says="--load nowhere: holds no checkpoint, and a run with --load never starts from iteration 0",
    ),
    Refused(
        rule="--save-interval needs --save",
        argv=("--save-interval", "100"),
        says="--save-interval does nothing here, because this run keeps no checkpoints; add --save DIR",
    ),
    *(
        Refused(
            rule=f"{flag} needs --save",
            argv=(flag,),
            says=f"add --save DIR, or leave {flag} out",
        )
        for flag in ("--allow-data-change", "--override-schedule", "--use-checkpoint-opt_param-scheduler")
    ),
    Refused(
        rule="one schedule of the two",
        argv=("--save", "nowhere", "--override-opt_param-scheduler", "--use-checkpoint-opt_param-scheduler"),
        says="give one of them",
    ),
    Refused(
        rule="float8 is for fused layers in bf16",
        argv=(*DEBUG, *FLOAT8),
        says="--fp8-recipe rowwise_with_gw_hp needs fused layers in bf16, and this run has fused layers in fp32",
    ),
    Refused(
        rule="float8 has a layer that is not kept in bf16",
        argv=(*FLOAT8, "--num-layers-at-start-in-bf16", "20", "--num-layers-at-end-in-bf16", "2"),
        says=(
            "--num-layers-at-start-in-bf16 20 and --num-layers-at-end-in-bf16 2 leave none of 22 "
            "layers for --fp8-recipe "
            "rowwise_with_gw_hp; together they must be at most 21"
        ),
    ),
    Refused(
        rule="--num-layers-at-start-in-bf16 needs --fp8-recipe rowwise_with_gw_hp",
        argv=("--num-layers-at-start-in-bf16", "1"),
        says="--num-layers-at-start-in-bf16 does nothing here, because no layer is in float8; add --fp8-recipe",
    ),
    Refused(
        rule="--num-layers-at-end-in-bf16 needs --fp8-recipe rowwise_with_gw_hp",
        argv=("--num-layers-at-end-in-bf16", "1"),
        says="--num-layers-at-end-in-bf16 does nothing here, because no layer is in float8; add --fp8-recipe",
    ),
    Refused(
        rule="--profile needs --profile-dir",
        argv=("--profile", "3:4"),
        says="add --profile-dir DIR, or leave --profile out",
    ),
    Refused(
        rule="--profile-dir needs --profile",
        argv=("--profile-dir", "x"),
        says="no iteration is profiled; add --profile A:B",
    ),
    Refused(
        rule="profiled iterations are the run's",
        argv=("--profile", "9:11", "--profile-dir", "x", "--train-iters", "10", "--lr-warmup-iters", "2"),
        says="--profile 9:11 must be within the run's iterations, 1 to 10; nearest: 9:10",
    ),
    Refused(
        rule="--overwrite needs --metrics-file",
        argv=("--overwrite",),
        says="add --metrics-file FILE, or leave",
    ),
    Refused(
        rule="stragglers are among two processes or more",
        argv=("--log-straggler",),
        says="the run has one process, and there is nothing to compare it with; leave it out, or start 2 processes",
    ),
    Refused(
        rule="stragglers of a tensor- or context-parallel group are told with fused layers",
        argv=("--log-straggler", "--transformer-impl", "local", "--context-parallel-size", "2"),
        world=2,
        says="--log-straggler with tensor parallel 1 and context parallel 2 needs fused layers",
    ),
    Refused(
        rule="stragglers of two GPUs that exchange are told without a CUDA graph",
        argv=("--log-straggler", "--tp-comm-overlap", "--tensor-model-parallel-size", "2"),
        world=2,
        says="add --no-cuda-graph, or leave --log-straggler out",
    ),
    Refused(
        rule="--keep-latest needs --save",
        argv=("--keep-latest", "2"),
        says="add --save DIR, or leave --keep-latest out",
    ),
    Refused(
        rule="--async-save needs --save",
        argv=("--async-save",),
        says="add --save DIR, or leave --async-save out",
    ),
    Refused(
        rule="--async-save needs --save-interval",
        argv=("--async-save", "--save", "nowhere"),
        says="the run saves only at its end, and waits for that save; add --save-interval N",
    ),
    Refused(
        rule="--eval-iters needs --eval-interval",
        argv=("--eval-iters", "2"),
        says="--eval-iters does nothing here, because this run is never evaluated; add --eval-interval N",
    ),
    *(
        Refused(
            rule=f"{flag} needs --tokenizer-model",
            argv=(flag, value),
            says=f"{flag} does nothing here, because the receipts of the data say what their tokenizer is; add",
        )
        for flag, value in (("--tokenizer-type", "HuggingFaceTokenizer"), ("--eod-token", "</s>"))
    ),
    Refused(
        rule="--tokenizer-model needs --data-path",
        argv=("--tokenizer-model", __file__),
        says=(
            "--tokenizer-model does nothing here, because the built-in corpus brings its own tokenizer; add --data-path"
        ),
    ),
    Refused(
        rule="document masking in bf16 on a GPU is flash attention",
        argv=("--inter-document-masking", "--attention-backend", "cudnn"),
        says="--attention-backend cudnn does nothing with --inter-document-masking in bf16 on a GPU",
    ),
    Refused(
        rule="flash and cudnn attention need bf16",
        argv=(*DEBUG, "--attention-backend", "flash"),
        says="--attention-backend flash computes in bf16 only, and this run is in fp32",
    ),
    Refused(
        rule="csv_monitor can be written",
        argv=DEBUG,
        ds={"zero_optimization": {"stage": 1}, "csv_monitor": {"enabled": True, "output_path": "/dev/null"}},
        says="csv_monitor would write to /dev/null/DeepSpeedJobName, which cannot be written; give it a writable",
    ),
]

BROKEN_BY_RECIPE: list[WrongRecipe] = [
    WrongRecipe(
        rule="the ramp ends at the global batch",
        block="batch",
        change={"rampup_batch_size": (32, 24, 1000)},
        says="steps of 24 do not lead from 32 to --global-batch-size 1024; nearest INCREMENT that does: 31",
    ),
    WrongRecipe(
        rule="sizes are at least 1",
        block="model",
        change={"num_layers": 0},
        says="num_layers is 0 in recipe tinyllama-1.1b",
    ),
    WrongRecipe(
        rule="sizes are at least 1",
        block="model",
        change={"kv_channels": 0},
        says="kv_channels is 0 in recipe tinyllama-1.1b",
    ),
    WrongRecipe(
        rule="heads of a width of their own have an even one",
        block="model",
        change={"kv_channels": 65},
        says="kv_channels 65 of tinyllama-1.1b is odd, and RoPE turns pairs of channels; nearest: 64 or 66",
    ),
    WrongRecipe(
        rule="a Llama's heads divide its hidden size",
        block="model",
        change={"kv_channels": 64, "num_attention_heads": 28},
        says="hidden_size 2048 of tinyllama-1.1b is not a multiple of num_attention_heads 28, which Hugging Face's",
    ),
    WrongRecipe(
        rule="biases and norms of queries and keys are not in one model",
        block="model",
        change={"add_qkv_bias": True, "qk_layernorm": True},
        says="leave add_qkv_bias out for a Qwen-3, qk_layernorm for a Qwen-2",
    ),
    WrongRecipe(
        rule="the norm's epsilon and RoPE's base are above 0",
        block="model",
        change={"rotary_base": 0.0},
        says="rotary_base 0; both must be",
    ),
    WrongRecipe(
        rule="the norm's epsilon and RoPE's base are above 0",
        block="model",
        change={"norm_epsilon": -1.0},
        says="is -1 and rotary_base 10000",
    ),
    WrongRecipe(
        rule="switches have a value that they know",
        block="optimizer",
        change={"lr_index": "step"},
        says="lr_index is 'step' in recipe tinyllama-1.1b; it must be one of iteration, micro_iteration",
    ),
    WrongRecipe(
        rule="switches have a value that they know",
        block="optimizer",
        change={"weight_decay_on": "norms"},
        says="one of all, matrices",
    ),
    WrongRecipe(
        rule="switches have a value that they know",
        block="model",
        change={"init_method": "xavier"},
        says="megatron, tinyllama, torch",
    ),
    WrongRecipe(
        rule="attention heads divide the hidden size, into heads of even width",
        block="model",
        change={"num_attention_heads": 24},
        says=(
            "hidden_size 2048 of tinyllama-1.1b is not a multiple of 2 x num_attention_heads 24; the "
            "nearest above: 2064"
        ),
    ),
    WrongRecipe(
        rule="RoPE scaling is one that is known",
        block="model",
        change={"rope_scaling": RopeScaling(rope_type="yarn", factor=4.0)},
        says="rope_type must be linear or llama3, factor at least 1",
    ),
    WrongRecipe(
        rule="RoPE scaling is one that is known",
        block="model",
        change={"rope_scaling": RopeScaling(rope_type="llama3", factor=4.0, low_freq_factor=4.0)},
        says="low_freq_factor below high_freq_factor",
    ),
    WrongRecipe(
        rule="query groups divide the attention heads",
        block="model",
        change={"num_query_groups": 5},
        says="num_query_groups 5 of tinyllama-1.1b does not divide its 32 attention heads; legal: 1, 2, 4, 8, 16, 32",
    ),
    WrongRecipe(
        rule="warm-up ends before the schedule does",
        block="optimizer",
        change={"lr_decay_iters": 1000},
        says="--lr-warmup-iters 2000 (the recipe's, if not given) must be below --lr-decay-iters 1000; at most 999",
    ),
]


def broken(
    run: RunConfig, gpu: Callable[[], bool] = with_gpu, peer: Callable[[], bool] = lambda: True
) -> tuple[str, str]:
    """Name of the first rule that the run breaks, and the message that `check` gives."""
    with pytest.raises(ConfigError) as told:
        legality.check(run, has_gpu=gpu, sees_peer=peer)
    rows = legality.rows(has_gpu=gpu, sees_peer=peer)
    return next(rule.name for rule in rows if not rule.holds(run)), str(told.value)


@pytest.mark.parametrize("refused", BROKEN_BY_FLAGS, ids=lambda refused: refused.rule)
def test_a_wrong_command_line_is_refused(make_run: Callable[..., RunConfig], refused: Refused) -> None:
    """By the rule that it breaks, in one line."""
    rule, message = broken(make_run(*refused.argv, ds=refused.ds, world=refused.world, judge=False))
    assert rule == refused.rule
    assert refused.says in message
    assert "\n" not in message


@pytest.mark.parametrize("wrong", BROKEN_BY_RECIPE, ids=lambda wrong: wrong.rule)
def test_a_wrong_recipe_is_refused(make_run: Callable[..., RunConfig], wrong: WrongRecipe) -> None:
    """What only a recipe file can say."""
    run = make_run()
    rule, message = broken(replace(run, **{wrong.block: replace(getattr(run, wrong.block), **wrong.change)}))
    assert rule == wrong.rule
    assert wrong.says in message


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


def test_tensor_parallel_gpus_that_do_not_see_each_other(make_run: Callable[..., RunConfig]) -> None:
    """Whoever asks for copies between them, or for a graph, is refused; the default is NCCL."""
    two = ("--tensor-model-parallel-size", "2")
    rule, message = broken(make_run("--cuda-graph", *two, "--recipe", "tinyllama-1.1b", world=2), peer=lambda: False)
    assert rule == "a CUDA graph of tensor-parallel passes needs GPUs that see each other's memory"
    assert message.startswith("--cuda-graph with tensor parallel 2 needs two GPUs of one host")
    with pytest.raises(
        ConfigError, match=r"^--tp-comm-overlap needs two GPUs of one host that see each other's memory"
    ):
        legality.check(make_run("--tp-comm-overlap", *two, world=2), has_gpu=with_gpu, sees_peer=lambda: False)
    legality.check(make_run(*two, world=2), has_gpu=with_gpu, sees_peer=lambda: False)


def test_a_graph_on_a_cpu(make_run: Callable[..., RunConfig]) -> None:
    """Refused, where it would do nothing."""
    rule, message = broken(make_run("--cuda-graph", "--recipe", "tinyllama-1.1b"), gpu=lambda: False)
    assert (rule, message) == (
        "a CUDA graph needs a GPU",
        "--cuda-graph needs a GPU, and there is none here; leave it out",
    )


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
    """With the standard library alone to be found; a directory of that name, as wandb makes one, is no package."""
    (tmp_path / package).mkdir()
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "path", [*(p for p in sys.path if "-packages" not in p), str(tmp_path)])
    run = make_run(*DEBUG, ds={**sharding, package: {"enabled": True}}, judge=False)
    rule, message = broken(run)
    assert rule == f"{package} is installed where it is asked for"
    assert f"{package} is not installed for {sys.executable}, and" in message


def test_a_run_that_was_changed_afterwards(make_run: Callable[..., RunConfig]) -> None:
    """Weights that are no shares, and a split beside datasets that validate, as a command line never gives them."""
    run = make_run("--data-path", "2", "a", "1", "b", judge=False)
    twice = replace(run, data=replace(run.data, blend=((2.0, "a"), (1.0, "b"))))
    rule, message = broken(twice)
    assert rule == "blend weights add up to 1"
    assert "--data-path: weights 2, 1 must add up to 1" in message
    assert "nearest: 0.666667, 0.333333" in message
    cut = replace(run, data=replace(run.data, valid_blend=((1.0, "v"),)))
    rule, message = broken(cut)
    assert rule == "datasets that validate leave all others to training"
    assert "--split 99,1,0 takes a part of --data-path from training" in message


def _floats(part: object) -> Iterator[tuple[str, ...]]:
    """Path of every field below a part of a run that holds a float."""
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from ((field.name, *rest) for rest in _floats(value))
        elif isinstance(value, float):
            yield (field.name,)


def _with(part: object, path: tuple[str, ...], value: float) -> object:
    inner = value if len(path) == 1 else _with(getattr(part, path[0]), path[1:], value)
    return replace(part, **{path[0]: inner})


def test_every_number_of_a_run_is_finite(make_run: Callable[..., RunConfig]) -> None:
    """Each float of the schema, infinite or none: those of a recipe, of Python, of the JSON's own keys."""
    run = make_run("--recipe", "tinyllama-1.1b", judge=False)
    run = replace(run, model=replace(run.model, rope_scaling=RopeScaling(rope_type="linear", factor=4.0)))
    paths = list(_floats(run))
    assert ("optimizer", "weight_decay") in paths and ("model", "rope_scaling", "factor") in paths
    for path, value in itertools.product(paths, (math.inf, -math.inf, math.nan)):
        rule, message = broken(_with(run, path, value))
        assert rule == "every number is finite"
        assert message.startswith(f"{'.'.join(path)} is {value} (recipe tinyllama-1.1b, ")
    deepspeed = {"bf16": {"bucket": [1, math.inf]}}
    _, message = broken(replace(run, sharding=replace(run.sharding, deepspeed=deepspeed)))
    assert message.startswith("sharding.deepspeed.bf16.bucket[1] is inf")


@pytest.mark.parametrize("block", ["model", "batch"])
def test_every_size_is_at_least_one(make_run: Callable[..., RunConfig], block: str) -> None:
    """Each whole number of the model and the batch, the vocabulary too."""
    run = make_run("--recipe", "tinyllama-1.1b", judge=False)
    part = getattr(run, block)
    sizes = [field.name for field in fields(part) if type(getattr(part, field.name)) is int]
    assert len(sizes) > 3
    for name in sizes:
        rule, message = broken(replace(run, **{block: replace(part, **{name: 0})}))
        assert (rule, message[: len(name) + 5]) == ("sizes are at least 1", f"{name} is 0")


def test_no_rule_is_left_untried() -> None:
    """A new row in the table needs a row here."""
    tried = {row.rule for row in (*BROKEN_BY_FLAGS, *BROKEN_BY_RECIPE)}
    tried |= {"blend weights add up to 1", "datasets that validate leave all others to training"}
    tried |= {"every number is finite"}
    tried |= {f"{package} is installed where it is asked for" for package in ("tensorboard", "wandb")}
    tried |= {"tensor parallel divides the columns of the feed-forward", "flash and cudnn attention need a GPU"}
    tried |= {"every value is one that its flag takes"}  # test_compose.py: a command line is read by its flags
    tried |= {"a CUDA graph needs a GPU"}
    tried |= {"a CUDA graph of tensor-parallel passes needs GPUs that see each other's memory"}
    tried |= {"float8 multiplies sizes that 16 divides", "float8 needs an Ada or Hopper GPU"}
    assert tried == {rule.name for rule in legality.rows(has_gpu=with_gpu)}


def test_the_documentation_lists_every_rule() -> None:
    """docs/reference/rules.md names the rows of the table, in its order."""
    listed = (REPOSITORY / "docs/reference/rules.md").read_text()
    assert re.findall(r"^- (.+)$", listed, flags=re.MULTILINE) == [
        rule.name for rule in legality.rows(has_gpu=with_gpu)
    ]


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


def test_the_vocabulary_is_the_commands(make_run: Callable[..., RunConfig]) -> None:
    """--vocab-size counts before the recipe's, and rows are rounded up alike for every tensor-parallel size."""
    command = ("--recipe", "tinyllama-1.1b", "--vocab-size", "151669")
    for tensor in ("1", "2"):
        run = make_run(
            *command, "--make-vocab-size-divisible-by", "128", "--tensor-model-parallel-size", tensor, world=2
        )
        assert with_vocab_size(run, 151_643, "tokenizer.json").model.vocab_size == 151_680
    free = make_run("--recipe", "tinyllama-debug", "--make-vocab-size-divisible-by", "128")
    assert with_vocab_size(free, 1003, "tokenizer.json").model.vocab_size == 1024
    with pytest.raises(ConfigError, match=r"or --vocab-size 151680 for a model of this tokenizer"):
        with_vocab_size(make_run(*command), 151_680, "tokenizer.json")


def test_the_initializers_are_those_of_the_model() -> None:
    """The names here and the table there are the same."""
    from tinyllama_mcore.model.initialize import METHODS

    assert tuple(sorted(METHODS)) == INIT_METHODS
