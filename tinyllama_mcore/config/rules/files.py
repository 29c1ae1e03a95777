"""Rules of the files that have to exist when a run starts: datasets, tokenizer, checkpoint, a directory to write to."""

from __future__ import annotations

import os

from tinyllama_mcore.config.paths import holds_checkpoint, missing_dataset, unwritable
from tinyllama_mcore.config.rules.data import blends
from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import RunConfig


def _missing_dataset(run: RunConfig) -> str | None:
    found = (missing_dataset(flag, [prefix for _, prefix in blend]) for flag, blend in blends(run))
    return next((problem for problem in found if problem), None)


FILE_RULES = (
    Rule(
        name="each prefix has its two files",
        about=About.FILES,
        holds=lambda run: _missing_dataset(run) is None,
        message=lambda run: str(_missing_dataset(run)),
    ),
    Rule(
        name="the tokenizer is there",
        about=About.FILES,
        holds=lambda run: run.data.tokenizer_model is None or os.path.exists(run.data.tokenizer_model),
        message=lambda run: f"--tokenizer-model {run.data.tokenizer_model}: no such file or directory",
    ),
    Rule(
        name="the save directory can be written",
        about=About.FILES,
        holds=lambda run: run.checkpoint.save is None or unwritable(run.checkpoint.save) is None,
        message=lambda run: (
            f"--save {run.checkpoint.save}: cannot be written; name a writable directory "
            f"({unwritable(str(run.checkpoint.save))})"
        ),
    ),
    Rule(
        name="--load holds a checkpoint",
        about=About.FILES,
        holds=lambda run: run.checkpoint.load is None or holds_checkpoint(run.checkpoint.load),
        message=lambda run: (
            f"--load {run.checkpoint.load}: holds no checkpoint, and a run with --load never starts from iteration 0; "
            "name the directory that --save wrote to, or leave --load out"
        ),
    ),
)
