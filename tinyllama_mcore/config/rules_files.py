"""Rules of what has to be there before a run starts: data, tokenizer, checkpoints, a place to write."""

from __future__ import annotations

import math
import os

from tinyllama_mcore.config.paths import holds_checkpoint, missing_dataset, unwritable
from tinyllama_mcore.config.rule import Rule
from tinyllama_mcore.config.schema import RunConfig

Blend = tuple[tuple[float, str], ...]


def _blends(run: RunConfig) -> tuple[tuple[str, Blend], ...]:
    """The flags that name datasets, and what they name."""
    return ("--data-path", run.data.blend), ("--valid-data-path", run.data.valid_blend)


def _not_shares(run: RunConfig) -> str | None:
    """What is wrong with the first weights that are no shares, in words."""
    for flag, blend in _blends(run):
        weights = [weight for weight, _ in blend]
        if weights and not (all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0):
            return (
                f"{flag}: weights {', '.join(f'{weight:g}' for weight in weights)} must not be negative, "
                f"and at least one must be above 0; for example {flag} 0.7 PREFIX1 0.3 PREFIX2"
            )
    return None


def _missing_dataset(run: RunConfig) -> str | None:
    found = (missing_dataset(flag, [prefix for _, prefix in blend]) for flag, blend in _blends(run))
    return next((problem for problem in found if problem), None)


FILE_RULES = (
    Rule(
        name="blend weights are shares",
        holds=lambda run: _not_shares(run) is None,
        message=lambda run: str(_not_shares(run)),
    ),
    Rule(
        name="validation data are evaluated",
        holds=lambda run: not run.data.valid_blend or run.loop.eval_interval > 0,
        message=lambda run: (
            f"--valid-data-path {run.data.valid_blend[0][1]} is never read with --eval-interval 0; give an interval, "
            "e.g. --eval-interval 1000"
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
        holds=lambda run: run.checkpoint.save is None or unwritable(run.checkpoint.save) is None,
        message=lambda run: (
            f"--save {run.checkpoint.save}: cannot be written; name a directory that can "
            f"({unwritable(str(run.checkpoint.save))})"
        ),
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
