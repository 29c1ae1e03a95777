"""Rules of what has to be there before a run starts: data, tokenizer, checkpoints, a place to write."""

from __future__ import annotations

import math
import os

from tinyllama_mcore.config.paths import holds_checkpoint, is_writable, missing_dataset
from tinyllama_mcore.config.rule import Rule
from tinyllama_mcore.config.schema import RunConfig


def _weights_are_shares(run: RunConfig) -> bool:
    weights = [weight for weight, _ in run.data.blend]
    return not weights or (all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0)


def _missing_dataset(run: RunConfig) -> str | None:
    return missing_dataset(prefix for _, prefix in run.data.blend)


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
