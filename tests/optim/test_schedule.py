"""The learning rate against the formula written out, Megatron-core's scheduler, and the released run's own loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from tinyllama_mcore.config.flags import DECAY_STYLES, WSD_DECAY_STYLES
from tinyllama_mcore.config.recipes import RECIPES
from tinyllama_mcore.config.schema import OptimizerConfig
from tinyllama_mcore.optim.schedule import learning_rate, turns

RECIPE = RECIPES["tinyllama-1.1b"]
RUN = RECIPE.batch.train_iters
STEPS = (0, 1, 1999, 2000, 2001, 100_000, 715_256, 1_430_511, 1_430_512, 2_000_000)


def released(step: int) -> float:
    """The rate of update `step` in jzhang38/TinyLlama at bf12224, from the constants of its run."""
    it = 8 * step + 7
    if it < 16_000:
        return 4e-4 * it / 16_000
    if it > 11_444_096:
        return 4e-5
    return 4e-5 + 0.5 * (1 + math.cos(math.pi * (it - 16_000) / (11_444_096 - 16_000))) * 3.6e-4


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (1, 2e-7),
        (1999, 3.998e-4),
        (2000, 4e-4),
        (100_000, 2.2e-4 + 1.8e-4 * math.cos(math.pi * 98_000 / 1_428_512)),
        (1_430_511, 2.2e-4 - 1.8e-4 * math.cos(math.pi / 1_428_512)),
        (1_430_512, 4e-5),
        (5_000_000, 4e-5),
    ],
)
def test_the_formula_by_iteration(step: int, expected: float) -> None:
    """Values written out by hand."""
    assert learning_rate(step, RECIPE.optimizer, RUN) == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("step", STEPS)
def test_the_formula_by_micro_iteration(step: int) -> None:
    """The released run's constants, as its own code has them."""
    optimizer = replace(RECIPE.optimizer, lr_index="micro_iteration")
    assert learning_rate(step, optimizer, RUN) == pytest.approx(released(step), rel=1e-12)


def megatrons(config: OptimizerConfig, end: int) -> Callable[[int], float]:
    """The rate of a step by OptimizerParamScheduler."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    theirs = OptimizerParamScheduler(
        torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.0),  # type: ignore[arg-type]
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=config.lr_warmup_iters,
        lr_decay_steps=end,
        lr_decay_style=config.lr_decay_style,
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=0,
        wd_incr_style="constant",
        wsd_decay_steps=config.lr_wsd_decay_iters,
        lr_wsd_decay_style=config.lr_wsd_decay_style,
    )

    def rate(step: int) -> float:
        theirs.num_steps = step
        return theirs.get_lr({})

    return rate


PLAIN_STYLES = [{"lr_decay_style": style} for style in DECAY_STYLES if style != "WSD"]
EVERY_WSD = [
    {"lr_decay_style": "WSD", "lr_wsd_decay_style": style, "lr_wsd_decay_iters": iters}
    for style in WSD_DECAY_STYLES
    for iters in (1, 2, 37, 80)
]


@pytest.mark.parametrize("style", [*PLAIN_STYLES, *EVERY_WSD], ids=lambda style: "-".join(map(str, style.values())))
@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_every_style_is_megatron_cores(style: dict[str, Any], warmup: int) -> None:
    """OptimizerParamScheduler gives the same at every iteration of a run, and beyond its end."""
    config = OptimizerConfig(lr=3e-4, min_lr=1e-5, lr_warmup_iters=warmup, **style)
    theirs = megatrons(config, 100)
    for step in range(120):
        assert learning_rate(step, config, 100) == pytest.approx(theirs(step), rel=1e-12, abs=0), step
        assert learning_rate(step, replace(config, lr_decay_iters=100), 999) == learning_rate(step, config, 100)


def test_the_papers_schedule_is_megatron_cores() -> None:
    """At every step tried of the whole run."""
    theirs = megatrons(RECIPE.optimizer, RUN)
    for step in STEPS:
        assert learning_rate(step, RECIPE.optimizer, RUN) == pytest.approx(theirs(step), rel=1e-12), step


@pytest.mark.parametrize("min_lr", [0.0, 1e-5, 3e-4 / 10])
def test_wsd_before_its_decay_is_constant_to_the_bit(min_lr: float) -> None:
    """So that a decay can begin at any checkpoint of a constant run: no rate that was lived differs."""
    constant = OptimizerConfig(lr=3e-4, min_lr=1e-5, lr_warmup_iters=20, lr_decay_style="constant")
    wsd = replace(constant, min_lr=min_lr, lr_decay_style="WSD", lr_wsd_decay_iters=30)
    for step in range(71):
        assert learning_rate(step, wsd, 100) == learning_rate(step, constant, 70)
    assert learning_rate(71, wsd, 100) < learning_rate(71, constant, 70)
    assert learning_rate(100, wsd, 100) == min_lr


@pytest.mark.parametrize("style", [*PLAIN_STYLES, *EVERY_WSD], ids=lambda style: "-".join(map(str, style.values())))
def test_the_rate_turns_where_it_is_said_to(style: dict[str, Any]) -> None:
    """Between two turns the rate does one thing: it rises, stays or falls."""
    config = OptimizerConfig(lr=3e-4, min_lr=1e-5, lr_warmup_iters=20, lr_decay_iters=100, **style)
    rates = [learning_rate(step, config, 999) for step in range(120)]
    kinds = [(later > earlier) - (later < earlier) for earlier, later in pairwise(rates)]
    turned = {step for step in range(1, len(kinds)) if kinds[step] != kinds[step - 1]}
    assert turned <= set(turns(config, 999)) | {turn + 1 for turn in turns(config, 999)}


def test_by_iteration_is_transformers_with_a_floor() -> None:
    """Hugging Face's cosine with min_lr gives the same over a whole short run."""
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    config = replace(RECIPE.optimizer, lr_warmup_iters=10)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 10, 100, min_lr=config.min_lr)
    for step in range(100):
        assert learning_rate(step, config, 100) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12), step
        optimizer.step()
        theirs.step()


def test_the_cosine_may_end_before_the_run() -> None:
    """`lr_decay_iters` ends it; the rest is flat."""
    config = replace(RECIPE.optimizer, lr_decay_iters=3000)
    assert learning_rate(2999, config, RUN) > config.min_lr
    assert learning_rate(3000, config, RUN) == learning_rate(RUN, config, RUN) == config.min_lr
    assert learning_rate(2500, config, RUN) == pytest.approx(2.2e-4, rel=1e-12)


def test_no_warm_up_starts_at_the_top() -> None:
    """And divides by nothing."""
    assert learning_rate(0, replace(RECIPE.optimizer, lr_warmup_iters=0), 100) == RECIPE.optimizer.lr


def test_a_flat_schedule_is_impossible() -> None:
    """Known bug 1 of the released run: min_lr was lr for 503 B tokens. A rule refuses that; here, the rate falls."""
    rates = [learning_rate(step, RECIPE.optimizer, RUN) for step in range(2000, RUN, 10_007)]
    assert all(later < earlier for earlier, later in pairwise(rates))
