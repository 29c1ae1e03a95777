"""Which runs are legal: a table of rules, each with a name, a test and a message in the user's words.

Neighbours: `cli` makes the RunConfig that `check` judges, before a process group or a GPU is touched. Rows stand in the
order in which they presume each other, so the first one broken is the one reported; docs are held against the table.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tinyllama_mcore.config.paths import holds_checkpoint, is_writable, missing_dataset
from tinyllama_mcore.config.schema import ConfigError, ModelConfig, RunConfig

INIT_METHODS = ("megatron", "tinyllama", "torch")
"""Rows of `tinyllama_mcore.model.initialize.METHODS`, named here because this floor is below it; a test compares."""

_GPU_KERNELS = ("flash", "cudnn")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row: a run is refused with `message` where `holds` is false."""

    name: str
    """What has to be so, in a few words."""
    holds: Callable[[RunConfig], bool]
    message: Callable[[RunConfig], str]
    """What was given and where, the rule, and the nearest legal value."""


def check(run: RunConfig, *, has_gpu: Callable[[], bool]) -> None:
    """Refuse a run that cannot be right. Only the first broken rule is told: later ones presume it.

    Args:
        run: the run; its vocabulary size need not be known yet.
        has_gpu: whether there is a GPU; called only where a rule needs to know, as asking imports torch.

    Raises:
        ConfigError: with the message of the first row that is broken.
    """
    for rule in rules(has_gpu):
        if not rule.holds(run):
            raise ConfigError(rule.message(run))


def with_vocab_size(run: RunConfig, tokenizer_vocab_size: int, tokenizer: str) -> RunConfig:
    """The run with the vocabulary of the tokenizer that made its data.

    Args:
        run: a run whose recipe leaves the vocabulary open or fixes it.
        tokenizer_vocab_size: pieces that the tokenizer knows.
        tokenizer: its path, for the message.

    Raises:
        ConfigError: the recipe fixes another size.
    """
    fixed = run.model.vocab_size
    if fixed not in (None, tokenizer_vocab_size):
        raise ConfigError(
            f"the tokenizer {tokenizer} has {tokenizer_vocab_size:,} pieces, but recipe {run.recipe} is for {fixed:,}: "
            f"give the tokenizer of the recipe (--tokenizer-model), or a recipe whose vocab_size is null"
        )
    return replace(run, model=replace(run.model, vocab_size=tokenizer_vocab_size))


def _least_size(run: RunConfig) -> tuple[str, int]:
    """Name and value of the smallest size of the model and the batch."""
    model, batch = run.model, run.batch
    sizes = {
        name: getattr(model, name)
        for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")
    } | {name: getattr(batch, name) for name in ("seq_length", "micro_batch_size", "global_batch_size", "train_iters")}
    return min(sizes.items(), key=lambda item: item[1])


def _wrong_choice(run: RunConfig) -> str | None:
    """A named switch of the recipe with a value that it does not have."""
    for name, value, allowed in (
        ("lr_index", run.optimizer.lr_index, ("iteration", "micro_iteration")),
        ("weight_decay_on", run.optimizer.weight_decay_on, ("all", "matrices")),
        ("init_method", run.model.init_method, INIT_METHODS),
        ("precision", run.sharding.precision, ("fp32", "bf16")),
    ):
        if value not in allowed:
            return f"{name} is {value!r} in recipe {run.recipe}; it must be one of {', '.join(allowed)}"
    return None


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)


def _largest_tensor_size(model: ModelConfig) -> int:
    """What a tensor-parallel size has to divide."""
    return math.gcd(model.num_attention_heads, model.num_query_groups, model.ffn_hidden_size)


def _tensor_rule(field: str, words: str) -> Rule:
    """A size of the model that the tensor-parallel ranks share evenly."""
    return Rule(
        name=f"tensor parallel divides the {words}",
        holds=lambda run: getattr(run.model, field) % run.layout.tensor_model_parallel_size == 0,
        message=lambda run: (
            f"--tensor-model-parallel-size {run.layout.tensor_model_parallel_size} does not divide the "
            f"{getattr(run.model, field)} {words} of {run.recipe}; "
            f"sizes that fit it: {_divisors(_largest_tensor_size(run.model))}"
        ),
    )


def _batch_unit(run: RunConfig) -> int:
    """Sequences that all data-parallel ranks take in one micro-batch: what the global batch is a multiple of."""
    return run.batch.micro_batch_size * run.layout.data_parallel_size


def _batch_message(run: RunConfig) -> str:
    size, unit = run.batch.global_batch_size, _batch_unit(run)
    below = size // unit * unit
    legal = f"{below} or {below + unit}" if below else f"{unit}"
    return (
        f"--global-batch-size {size} is not a multiple of {unit} = --micro-batch-size {run.batch.micro_batch_size} x "
        f"data parallel {run.layout.data_parallel_size}; nearest: {legal} (in {run.sharding.source}: train_batch_size)"
    )


def _zero(run: RunConfig, key: str) -> object:
    """A key of the JSON's zero_optimization block."""
    return run.sharding.deepspeed.get("zero_optimization", {}).get(key)


def _weights_are_shares(run: RunConfig) -> bool:
    weights = [weight for weight, _ in run.data.blend]
    return not weights or (all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0)


def _missing_dataset(run: RunConfig) -> str | None:
    return missing_dataset(prefix for _, prefix in run.data.blend)


def _decay_end(run: RunConfig) -> tuple[str, int]:
    """Where the cosine ends, and by which name."""
    if run.optimizer.lr_decay_iters is None:
        return "--train-iters", run.batch.train_iters
    return "lr_decay_iters", run.optimizer.lr_decay_iters


SHAPE_RULES = (
    Rule(
        name="sizes are at least 1",
        holds=lambda run: _least_size(run)[1] >= 1,
        message=lambda run: "{} is {} in recipe {}; it must be at least 1".format(*_least_size(run), run.recipe),
    ),
    Rule(
        name="switches have a value that they know",
        holds=lambda run: _wrong_choice(run) is None,
        message=lambda run: str(_wrong_choice(run)),
    ),
    Rule(
        name="attention heads divide the hidden size, into heads of even width",
        holds=lambda run: run.model.hidden_size % (2 * run.model.num_attention_heads) == 0,
        message=lambda run: (
            f"hidden_size {run.model.hidden_size} of {run.recipe} is not a multiple of "
            f"2 x num_attention_heads {run.model.num_attention_heads}; the nearest above: "
            f"{(run.model.hidden_size // (2 * run.model.num_attention_heads) + 1) * 2 * run.model.num_attention_heads}"
        ),
    ),
    Rule(
        name="query groups divide the attention heads",
        holds=lambda run: run.model.num_attention_heads % run.model.num_query_groups == 0,
        message=lambda run: (
            f"num_query_groups {run.model.num_query_groups} of {run.recipe} does not divide its "
            f"{run.model.num_attention_heads} attention heads; legal: {_divisors(run.model.num_attention_heads)}"
        ),
    ),
    Rule(
        name="the sequence fits the positions",
        holds=lambda run: run.batch.seq_length <= run.model.max_position_embeddings,
        message=lambda run: (
            f"--seq-length {run.batch.seq_length} is longer than the {run.model.max_position_embeddings} positions of "
            f"{run.recipe} (max_position_embeddings); at most {run.model.max_position_embeddings}"
        ),
    ),
)

LAYOUT_RULES = (
    _tensor_rule("num_attention_heads", "attention heads"),
    _tensor_rule("num_query_groups", "query groups"),
    _tensor_rule("ffn_hidden_size", "columns of the feed-forward"),
    Rule(
        name="world = tensor parallel x data parallel",
        holds=lambda run: run.layout.world_size % run.layout.tensor_model_parallel_size == 0,
        message=lambda run: (
            f"--tensor-model-parallel-size {run.layout.tensor_model_parallel_size} does not divide the "
            f"{run.layout.world_size} processes of the job; legal: "
            f"{_divisors(math.gcd(run.layout.world_size, _largest_tensor_size(run.model)))}"
        ),
    ),
    Rule(
        name="global batch = micro batch x accumulation x data parallel",
        holds=lambda run: run.batch.global_batch_size % _batch_unit(run) == 0,
        message=_batch_message,
    ),
    Rule(
        name="gradient_accumulation_steps is what the batch makes it",
        holds=lambda run: (
            run.sharding.deepspeed.get("gradient_accumulation_steps", run.num_micro_batches) == run.num_micro_batches
        ),
        message=lambda run: (
            f"{run.sharding.source}: gradient_accumulation_steps is "
            f"{run.sharding.deepspeed['gradient_accumulation_steps']}, but global batch "
            f"{run.batch.global_batch_size} / (micro batch {run.batch.micro_batch_size} x data parallel "
            f"{run.layout.data_parallel_size}) is {run.num_micro_batches}; "
            f'write {run.num_micro_batches} or "auto", or change train_batch_size'
        ),
    ),
    Rule(
        name="sequence parallel needs tensor parallel",
        holds=lambda run: not run.layout.sequence_parallel or run.layout.tensor_model_parallel_size > 1,
        message=lambda run: (
            "--sequence-parallel needs --tensor-model-parallel-size 2 or more, got "
            f"{run.layout.tensor_model_parallel_size}; leave it out"
        ),
    ),
    Rule(
        name="sequence parallel divides the sequence",
        holds=lambda run: (
            not run.layout.sequence_parallel or run.batch.seq_length % run.layout.tensor_model_parallel_size == 0
        ),
        message=lambda run: (
            f"--seq-length {run.batch.seq_length} is not a multiple of --tensor-model-parallel-size "
            f"{run.layout.tensor_model_parallel_size}, which --sequence-parallel needs; nearest: "
            f"{run.batch.seq_length // run.layout.tensor_model_parallel_size * run.layout.tensor_model_parallel_size}"
        ),
    ),
)

SHARDING_RULES = (
    Rule(
        name="the ZeRO stage is 0, 1, 2 or 3",
        holds=lambda run: run.sharding.zero_stage in range(4),
        message=lambda run: (
            f"{run.sharding.source}: zero_optimization.stage is {run.sharding.zero_stage}; it must be 0, 1, 2 or 3"
        ),
    ),
    Rule(  # DeepSpeed 0.19.8 takes a real optimizer step on zero gradients at start: the curve is 0.9% off
        name="ZeRO 0 trains in fp32",
        holds=lambda run: run.sharding.zero_stage > 0 or run.sharding.precision == "fp32",
        message=lambda run: (
            f"{run.sharding.source}: ZeRO stage 0 with bf16 computes a wrong first update in DeepSpeed; "
            'use ds_configs/zero1.json, or "bf16": {"enabled": false}'
        ),
    ),
    Rule(
        name="overlap_comm needs ZeRO 2 or 3",
        holds=lambda run: not _zero(run, "overlap_comm") or run.sharding.zero_stage >= 2,
        message=lambda run: (
            f"{run.sharding.source}: zero_optimization.overlap_comm is true at stage {run.sharding.zero_stage}, where "
            "gradients are reduced once an iteration and there is nothing to overlap; write false, or use stage 2 or 3"
        ),
    ),
    Rule(
        name="offload_optimizer needs ZeRO 1, 2 or 3",
        holds=lambda run: not run.sharding.offload_optimizer or run.sharding.zero_stage >= 1,
        message=lambda run: (
            f"{run.sharding.source}: offload_optimizer needs zero_optimization.stage 1, 2 or 3, got 0; "
            "use ds_configs/zero3_offload.json"
        ),
    ),
    Rule(
        name="offload_param needs ZeRO 3",
        holds=lambda run: not run.sharding.offload_param or run.sharding.zero_stage == 3,
        message=lambda run: (
            f"{run.sharding.source}: offload_param needs zero_optimization.stage 3, got {run.sharding.zero_stage}; "
            "use ds_configs/zero3_offload.json, or offload_optimizer alone"
        ),
    ),
    Rule(
        name="fp32 accumulates in fp32",
        holds=lambda run: run.sharding.precision == "bf16" or run.sharding.grad_accum_dtype == "fp32",
        message=lambda run: (
            f"{run.sharding.source}: data_types.grad_accum_dtype is {run.sharding.grad_accum_dtype!r}, but gradients "
            'are fp32 without bf16.enabled; write "fp32" or "auto"'
        ),
    ),
    Rule(  # measured on two H200s: ZeRO 2 compiled gave a wrong gradient norm, tensor parallel compiled did not end
        name="compile needs ZeRO 0 or 1 and no tensor parallel",
        holds=lambda run: (
            not run.compile or (run.sharding.zero_stage <= 1 and run.layout.tensor_model_parallel_size == 1)
        ),
        message=lambda run: (
            f"--compile is right only with ZeRO 0 or 1 and --tensor-model-parallel-size 1, got ZeRO "
            f"{run.sharding.zero_stage} and {run.layout.tensor_model_parallel_size}; "
            "leave it out, or use ds_configs/zero1.json"
        ),
    ),
)

OPTIMIZER_RULES = (
    Rule(
        name="the learning rate is positive and finite",
        holds=lambda run: 0 < run.optimizer.lr < math.inf,
        message=lambda run: f"--lr {run.optimizer.lr} must be above 0; the paper's is 4e-4",
    ),
    Rule(  # the released run held its learning rate flat for 503 B tokens this way (paper, footnote 4)
        name="the schedule falls: 0 <= min_lr < lr",
        holds=lambda run: 0 <= run.optimizer.min_lr < run.optimizer.lr,
        message=lambda run: (
            f"--min-lr {run.optimizer.min_lr:g} must be at least 0 and below --lr {run.optimizer.lr:g}, or the "
            f"learning rate never falls; the paper's share is a tenth: {run.optimizer.lr / 10:g}"
        ),
    ),
    Rule(
        name="warm-up ends before the schedule does",
        holds=lambda run: 0 <= run.optimizer.lr_warmup_iters < _decay_end(run)[1],
        message=lambda run: (
            "--lr-warmup-iters {} must be below {} {}; at most {} (to try only the first iterations of the "
            "same schedule, leave the run's length and give --exit-interval)"
        ).format(run.optimizer.lr_warmup_iters, *_decay_end(run), _decay_end(run)[1] - 1),
    ),
    Rule(
        name="AdamW's numbers are in range",
        holds=lambda run: (
            0 <= run.optimizer.adam_beta1 < 1
            and 0 <= run.optimizer.adam_beta2 < 1
            and run.optimizer.adam_eps > 0
            and run.optimizer.weight_decay >= 0
            and run.optimizer.clip_grad >= 0
        ),
        message=lambda run: (
            f"adam_beta1 {run.optimizer.adam_beta1:g} and adam_beta2 {run.optimizer.adam_beta2:g} must be in [0, 1), "
            f"adam_eps {run.optimizer.adam_eps:g} above 0, weight_decay {run.optimizer.weight_decay:g} and clip_grad "
            f"{run.optimizer.clip_grad:g} at least 0 (recipe {run.recipe}, {run.sharding.source})"
        ),
    ),
)

FILE_RULES = (
    Rule(
        name="blend weights are shares",
        holds=_weights_are_shares,
        message=lambda run: (
            f"--data-path: weights {', '.join(f'{weight:g}' for weight, _ in run.data.blend)} must not be negative, "
            "and at least one must be above 0; for example --data-path 0.7 PREFIX1 0.3 PREFIX2"
        ),
    ),
    Rule(
        name="each prefix has its two files",
        holds=lambda run: _missing_dataset(run) is None,
        message=lambda run: str(_missing_dataset(run)),
    ),
    Rule(
        name="the tokenizer is there",
        holds=lambda run: run.data.tokenizer_model is None or os.path.exists(run.data.tokenizer_model),
        message=lambda run: f"--tokenizer-model {run.data.tokenizer_model}: no such file",
    ),
    Rule(
        name="the save directory can be written",
        holds=lambda run: run.checkpoint.save is None or is_writable(run.checkpoint.save),
        message=lambda run: f"--save {run.checkpoint.save}: cannot be written; name a directory that can",
    ),
    Rule(
        name="--load holds a checkpoint",
        holds=lambda run: (
            not run.checkpoint.load_is_required
            or (run.checkpoint.load is not None and holds_checkpoint(run.checkpoint.load))
        ),
        message=lambda run: (
            f"--load {run.checkpoint.load}: holds no checkpoint, and a run that was told to load never starts from "
            "zero; name the directory that --save wrote to, or leave --load out"
        ),
    ),
)

RULES = (*SHAPE_RULES, *LAYOUT_RULES, *SHARDING_RULES, *OPTIMIZER_RULES, *FILE_RULES)


def rules(has_gpu: Callable[[], bool]) -> Iterator[Rule]:
    """Every row in the order of judging: those of the run alone, then those that ask for the device."""
    yield from RULES
    yield Rule(
        name="flash and cudnn attention need bf16",
        holds=lambda run: run.attention_backend not in _GPU_KERNELS or run.sharding.precision == "bf16",
        message=lambda run: (
            f"--attention-backend {run.attention_backend} computes in bf16 only, and this run is in "
            f"{run.sharding.precision} ({run.sharding.source}: bf16.enabled); use sdpa or auto"
        ),
    )
    yield Rule(
        name="flash and cudnn attention need a GPU",
        holds=lambda run: run.attention_backend not in _GPU_KERNELS or has_gpu(),
        message=lambda run: (
            f"--attention-backend {run.attention_backend} needs a GPU, and there is none here; use sdpa or auto"
        ),
    )
