"""Rules of the model: its sizes and switches as a recipe says them, and the rows of its embedding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass, replace

from tinyllama_mcore.config import recipes
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.nearest import divisors, nearest_multiples
from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.config.tokenizer_types import rounded_up

INIT_METHODS = ("megatron", "tinyllama", "torch")
"""Rows of `tinyllama_mcore.model.initialize.METHODS`, named here because this level is below it; a test compares."""


def _too_small(run: RunConfig) -> str | None:
    return recipes.too_small(run.model, run.batch, run.recipe)


def _not_finite(part: object, name: str) -> Iterator[str]:
    """Name and value of every number below this part of a run that is infinite or none."""
    if is_dataclass(part):
        part = vars(part)
    if isinstance(part, float) and not math.isfinite(part):
        yield f"{name} is {part}"
    elif isinstance(part, Mapping):
        for key, value in part.items():
            yield from _not_finite(value, f"{name}.{key}" if name else key)
    elif isinstance(part, tuple | list):
        for number, value in enumerate(part):
            yield from _not_finite(value, f"{name}[{number}]")


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


MODEL_RULES = (
    Rule(
        name="every number is finite",
        about=About.MODEL,
        holds=lambda run: not any(_not_finite(run, "")),
        message=lambda run: (
            f"{'; '.join(_not_finite(run, ''))} (recipe {run.recipe}, {run.sharding.source}): every number of a run "
            "must be finite"
        ),
    ),
    Rule(
        name="sizes are at least 1",
        about=About.MODEL,
        holds=lambda run: _too_small(run) is None,
        message=lambda run: str(_too_small(run)),
    ),
    Rule(
        name="switches have a value that they know",
        about=About.MODEL,
        holds=lambda run: _wrong_choice(run) is None,
        message=lambda run: str(_wrong_choice(run)),
    ),
    Rule(
        name="attention heads divide the hidden size, into heads of even width",
        about=About.MODEL,
        holds=lambda run: (
            run.model.kv_channels is not None or run.model.hidden_size % (2 * run.model.num_attention_heads) == 0
        ),
        message=lambda run: (
            f"hidden_size {run.model.hidden_size} of {run.recipe} is not a multiple of "
            f"2 x num_attention_heads {run.model.num_attention_heads}; the nearest above: "
            f"{(run.model.hidden_size // (2 * run.model.num_attention_heads) + 1) * 2 * run.model.num_attention_heads}"
        ),
    ),
    Rule(
        name="heads of a width of their own have an even one",
        about=About.MODEL,
        holds=lambda run: run.model.head_dim % 2 == 0,
        message=lambda run: (
            f"kv_channels {run.model.kv_channels} of {run.recipe} is odd, and RoPE turns pairs of channels; nearest: "
            f"{run.model.head_dim - 1} or {run.model.head_dim + 1}"
        ),
    ),
    Rule(  # LlamaConfig.validate_architecture, transformers 5.23
        name="a Llama's heads divide its hidden size",
        about=About.MODEL,
        holds=lambda run: (
            run.model.add_qkv_bias
            or run.model.qk_layernorm
            or run.model.hidden_size % run.model.num_attention_heads == 0
        ),
        message=lambda run: (
            f"hidden_size {run.model.hidden_size} of {run.recipe} is not a multiple of num_attention_heads "
            f"{run.model.num_attention_heads}, which Hugging Face's Llama needs even where kv_channels is given; "
            f"nearest: {nearest_multiples(run.model.hidden_size, run.model.num_attention_heads)}"
        ),
    ),
    Rule(
        name="biases and norms of queries and keys are not in one model",
        about=About.MODEL,
        holds=lambda run: not (run.model.add_qkv_bias and run.model.qk_layernorm),
        message=lambda run: (
            f"add_qkv_bias and qk_layernorm of {run.recipe} are both true, and no model of Hugging Face has both: "
            "leave add_qkv_bias out for a Qwen-3, qk_layernorm for a Qwen-2"
        ),
    ),
    Rule(
        name="query groups divide the attention heads",
        about=About.MODEL,
        holds=lambda run: run.model.num_attention_heads % run.model.num_query_groups == 0,
        message=lambda run: (
            f"num_query_groups {run.model.num_query_groups} of {run.recipe} does not divide its "
            f"{run.model.num_attention_heads} attention heads; legal: {divisors(run.model.num_attention_heads)}"
        ),
    ),
    Rule(
        name="the norm's epsilon and RoPE's base are above 0",
        about=About.MODEL,
        holds=lambda run: run.model.norm_epsilon > 0 and run.model.rotary_base > 0,
        message=lambda run: (
            f"norm_epsilon of {run.recipe} is {run.model.norm_epsilon:g} and rotary_base {run.model.rotary_base:g}; "
            "both must be above 0, in TinyLlama 1e-05 and 10000"
        ),
    ),
    Rule(
        name="RoPE scaling is one that is known",
        about=About.MODEL,
        holds=lambda run: (
            run.model.rope_scaling is None
            or (
                run.model.rope_scaling.rope_type in ("linear", "llama3")
                and run.model.rope_scaling.factor >= 1
                and run.model.rope_scaling.low_freq_factor < run.model.rope_scaling.high_freq_factor
                and run.model.rope_scaling.original_max_position_embeddings >= 1
            )
        ),
        message=lambda run: (
            f"rope_scaling of {run.recipe} is {run.model.rope_scaling}; rope_type must be linear or llama3, factor at "
            "least 1, low_freq_factor below high_freq_factor, and original_max_position_embeddings at least 1"
        ),
    ),
    Rule(
        name="the sequence fits the positions",
        about=About.MODEL,
        holds=lambda run: run.batch.seq_length <= run.model.max_position_embeddings,
        message=lambda run: (
            f"--seq-length {run.batch.seq_length} is longer than the {run.model.max_position_embeddings} positions of "
            f"{run.recipe} (max_position_embeddings); at most {run.model.max_position_embeddings}"
        ),
    ),
)


def with_vocab_size(run: RunConfig, tokenizer_vocab_size: int, tokenizer: str) -> RunConfig:
    """The run with as many rows in its embedding as it says, or as the tokenizer of its data has ids, rounded up.

    Padding to a multiple of the tensor-parallel size is no part of this: it is never saved (`padded_vocab_size`).

    Args:
        run: a run that leaves the vocabulary open or fixes it. Rows beyond the tokenizer's are noted and kept.
        tokenizer_vocab_size: ids that the tokenizer has.
        tokenizer: its path, for the message.

    Raises:
        ConfigError: the run has fewer rows than the tokenizer ids.
    """
    given = tokenizer_vocab_size if run.model.vocab_size is None else run.model.vocab_size
    rows = rounded_up(given, run.make_vocab_size_divisible_by)
    if rows < tokenizer_vocab_size:
        raise ConfigError(
            f"the tokenizer {tokenizer} has {tokenizer_vocab_size:,} pieces, but recipe {run.recipe} has vocab_size "
            f"{rows:,}: a model needs a row for each piece; give the tokenizer of the recipe (--tokenizer-model), or "
            f"--vocab-size {tokenizer_vocab_size} for a model of this tokenizer"
        )
    told = f"vocab_size {rows:,} exceeds the tokenizer's {tokenizer_vocab_size:,} pieces: the ids above never occur"
    notes = (*run.notes, told) if rows > tokenizer_vocab_size else run.notes
    return replace(run, model=replace(run.model, vocab_size=rows), notes=notes)
