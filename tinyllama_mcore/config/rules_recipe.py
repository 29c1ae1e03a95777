"""Rules of what a recipe says: the shape of the model, the optimizer and its schedule."""

from __future__ import annotations

import math

from tinyllama_mcore.config.nearest import divisors
from tinyllama_mcore.config.rule import Rule
from tinyllama_mcore.config.schema import RunConfig

INIT_METHODS = ("megatron", "tinyllama", "torch")
"""Rows of `tinyllama_mcore.model.initialize.METHODS`, named here because this floor is below it; a test compares."""


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


def _decay_end(run: RunConfig) -> tuple[str, int]:
    """Where the cosine ends, and by which name."""
    if run.optimizer.lr_decay_iters is None:
        return "--train-iters", run.batch.train_iters
    return "lr_decay_iters", run.optimizer.lr_decay_iters


MODEL_RULES = (
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
            f"{run.model.num_attention_heads} attention heads; legal: {divisors(run.model.num_attention_heads)}"
        ),
    ),
    Rule(
        name="RoPE scaling is one that is known",
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
        holds=lambda run: run.batch.seq_length <= run.model.max_position_embeddings,
        message=lambda run: (
            f"--seq-length {run.batch.seq_length} is longer than the {run.model.max_position_embeddings} positions of "
            f"{run.recipe} (max_position_embeddings); at most {run.model.max_position_embeddings}"
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
