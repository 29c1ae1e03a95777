"""The learning rate as a pure function of the iteration: linear warm-up, then Megatron-LM's decay styles.

No state: a resumed run asks with its iteration and gets what an uninterrupted one would. The engine sets the result on
every parameter group before an update. Neighbours: `groups` builds the optimizer, `config.recipes` has the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tinyllama_mcore.config.schema import OptimizerConfig

MICRO_ITERATIONS = 8
"""Micro-batches of one iteration in the released run: 64 sequences per GPU / micro batch 8 (jzhang38/TinyLlama,
pretrain/tinyllama.py: `gradient_accumulation_steps`). A constant of that run, whatever this one's layout."""

SHAPES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda ratio: 0.5 * (math.cos(math.pi * ratio) + 1.0),
    "linear": lambda ratio: 1.0 - ratio,
    "exponential": lambda ratio: 2.0 * 0.5**ratio - 1.0,
    "minus_sqrt": lambda ratio: 1.0 - math.sqrt(ratio),
}
"""Name of a decay -> the share of lr - min_lr that is left after `ratio` of it, both from 0 to 1."""


def learning_rate(iteration: int, optimizer: OptimizerConfig, train_iters: int) -> float:
    """Learning rate of one iteration, as Megatron-core's `OptimizerParamScheduler.get_lr` has it.

    `lr_index` "iteration" is Megatron's and Hugging Face's convention: iteration s of w of warm-up has lr * s / w, so
    the first has 0. "micro_iteration" is the released run's: its loop counted micro-batches and set the rate before
    each, so iteration s has the rate of its last one, 8 s + 7, with a warm-up of 8 w (16,000) and an end at 11,444,096.

    Args:
        iteration: from 0; those whose update was skipped count.
        optimizer: largest and smallest rate, warm-up, style and end of the decay.
        train_iters: iterations in the whole run, where the decay ends unless `lr_decay_iters` says otherwise.
    """
    largest, least, warmup = optimizer.lr, optimizer.min_lr, optimizer.lr_warmup_iters
    style, end = optimizer.lr_decay_style, optimizer.decay_end(train_iters)
    position = iteration + (1 - 1 / MICRO_ITERATIONS if optimizer.lr_index == "micro_iteration" else 0)
    if position < warmup:
        return largest * position / warmup
    if style == "constant":
        return largest
    if position > end:
        return least
    if style == "inverse-square-root":
        return max(least, largest * max(warmup, 1) ** 0.5 / max(position, 1) ** 0.5)
    begin = optimizer.decay_begin(train_iters)
    if position <= begin:  # Megatron's min_lr + 1.0 * (lr - min_lr) may round: a constant run must have the same bits
        return largest
    shape = SHAPES[optimizer.lr_wsd_decay_style if style == "WSD" else style]
    return least + shape((position - begin) / (end - begin)) * (largest - least)


def turns(optimizer: OptimizerConfig, train_iters: int) -> tuple[int, ...]:
    """Iterations at which the formula changes: two schedules that differ do so at, before or after one of either's."""
    return (0, optimizer.lr_warmup_iters, optimizer.decay_begin(train_iters), optimizer.decay_end(train_iters))
