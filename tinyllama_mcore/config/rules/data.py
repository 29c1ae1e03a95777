"""Rules of the data: a blend's weights are shares, and validation data are read.

Neighbour: `files` asks whether the datasets are there.
"""

from __future__ import annotations

import math

from tinyllama_mcore.config.data_config import Blend
from tinyllama_mcore.config.given import ALL_TO_TRAIN_ON, shares
from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import RunConfig


def blends(run: RunConfig) -> tuple[tuple[str, Blend], ...]:
    """The flags that name datasets, and what they name."""
    later = (("--data-path-from", later.blend) for later in run.data.later_blends)
    return ("--data-path", run.data.blend), *later, ("--valid-data-path", run.data.valid_blend)


def _not_shares(run: RunConfig) -> str | None:
    """What is wrong with the first weights that are no shares, in words."""
    for flag, blend in blends(run):
        weights = [weight for weight, _ in blend]
        if weights and not (all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0):
            return (
                f"{flag}: weights {', '.join(f'{weight:g}' for weight in weights)} must not be negative, "
                "and at least one must be above 0; for example 0.7 PREFIX1 0.3 PREFIX2"
            )
    return None


def _not_of_one(run: RunConfig) -> str | None:
    """What is wrong with the first shares that do not add up to 1, in words."""
    for flag, blend in blends(run):
        weights = [weight for weight, _ in blend]
        if weights and not math.isclose(sum(weights), 1.0, rel_tol=1e-6):
            return (
                f"{flag}: weights {', '.join(f'{weight:g}' for weight in weights)} must add up to 1, as `compose` has "
                f"them do; nearest: {', '.join(f'{weight:g}' for weight, _ in shares(blend))}"
            )
    return None


def _out_of_order(run: RunConfig) -> str | None:
    """What is wrong with the first later blend that could not be drawn from, in words."""
    sizes, before = run.batch.sizes, 0
    in_all = sizes.samples_before(run.batch.train_iters)
    for later in run.data.later_blends:
        if not before < later.first_sample < in_all:
            bounds = [sizes.iterations_within(sample) for sample in (before, in_all)]
            return (
                f"--data-path-from {later.after(sizes)} begins at sample "
                f"{later.first_sample:,}, and must begin after the blend before it and before the run's end: after "
                f"iteration {bounds[0] + 1:,} at the earliest, {bounds[1] - 1:,} at the latest"
            )
        before = later.first_sample
    return None


DATA_RULES = (
    Rule(
        name="blend weights are shares",
        about=About.DATA,
        holds=lambda run: _not_shares(run) is None,
        message=lambda run: str(_not_shares(run)),
    ),
    Rule(  # a command line and `compose` see to it; a run that is changed afterwards may not have it
        name="blend weights add up to 1",
        about=About.DATA,
        holds=lambda run: _not_of_one(run) is None,
        message=lambda run: str(_not_of_one(run)),
    ),
    Rule(
        name="later blends follow one another within the run",
        about=About.DATA,
        holds=lambda run: _out_of_order(run) is None,
        message=lambda run: str(_out_of_order(run)),
    ),
    Rule(
        name="a later blend follows data that were named",
        about=About.DATA,
        holds=lambda run: not run.data.later_blends or bool(run.data.blend),
        message=lambda _: "--data-path-from needs --data-path: the built-in sample corpus is not blended with others",
    ),
    Rule(
        name="datasets that validate leave all others to training",
        about=About.DATA,
        holds=lambda run: not run.data.valid_blend or run.data.split == ALL_TO_TRAIN_ON,
        message=lambda run: (
            f"--split {','.join(f'{share:g}' for share in run.data.split)} takes a part of --data-path from training, "
            "and --valid-data-path names what to validate on; with it the split must be "
            f"{','.join(f'{share:g}' for share in ALL_TO_TRAIN_ON)}"
        ),
    ),
    Rule(
        name="validation data are evaluated",
        about=About.DATA,
        holds=lambda run: not run.data.valid_blend or run.loop.eval_interval > 0,
        message=lambda run: (
            f"--valid-data-path {run.data.valid_blend[0][1]} is never read with --eval-interval 0; give an interval, "
            "e.g. --eval-interval 1000"
        ),
    ),
)
