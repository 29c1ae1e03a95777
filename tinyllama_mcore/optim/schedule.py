"""The learning rate as a pure function of the iteration: linear warm-up, then half a cosine, then flat.

No state: a resumed run asks with its iteration and gets what an uninterrupted one would. The engine sets the result on
every parameter group before an update. Neighbours: `groups` builds the optimizer, `config.recipes` has the numbers.
"""

from __future__ import annotations

import math

from tinyllama_mcore.config.schema import OptimizerConfig

MICRO_ITERATIONS = 8
"""Micro-batches of one update in the released run: 64 sequences per GPU / micro batch 8 (jzhang38/TinyLlama,
pretrain/tinyllama.py: `gradient_accumulation_steps`). A constant of that run, whatever this one's layout."""


def learning_rate(iteration: int, optimizer: OptimizerConfig, train_iters: int) -> float:
    """Learning rate of one optimizer update.

    `lr_index` "iteration" is Megatron's and Hugging Face's convention: update s of w warm-up updates has lr * s / w, so
    the first has 0. "micro_iteration" is the released run's: its loop counted micro-batches and set the rate before
    each, so update s has the rate of its last one, 8 s + 7, with a warm-up of 8 w (16,000) and an end at 11,444,096.

    Args:
        iteration: the update, from 0.
        optimizer: largest and smallest rate, warm-up and end of the cosine.
        train_iters: updates in the whole run, where the cosine ends unless `lr_decay_iters` says otherwise.
    """
    end = train_iters if optimizer.lr_decay_iters is None else optimizer.lr_decay_iters
    position, warmup = iteration, optimizer.lr_warmup_iters
    if optimizer.lr_index == "micro_iteration":
        position = MICRO_ITERATIONS * iteration + MICRO_ITERATIONS - 1
        warmup, end = MICRO_ITERATIONS * warmup, MICRO_ITERATIONS * end
    if position < warmup:
        return optimizer.lr * position / warmup
    if position >= end:
        return optimizer.min_lr
    progress = (position - warmup) / (end - warmup)
    return optimizer.min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (optimizer.lr - optimizer.min_lr)
