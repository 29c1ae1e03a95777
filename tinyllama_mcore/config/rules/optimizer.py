"""Rules of the optimizer: AdamW's numbers, and a learning-rate schedule whose parts fit together."""

from __future__ import annotations

import math

from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import RunConfig


def _decay_end(run: RunConfig) -> tuple[str, int]:
    """Where the decay ends, and by which name."""
    name = "--train-iters" if run.optimizer.lr_decay_iters is None else "--lr-decay-iters"
    return name, run.optimizer.decay_end(run.batch.train_iters)


def _longest_decay(run: RunConfig) -> int:
    """Iterations from the end of warm-up to the end of the decay."""
    return _decay_end(run)[1] - run.optimizer.lr_warmup_iters


def _may_fall(run: RunConfig) -> bool:
    return run.optimizer.lr_decay_style != "constant"


def _has_wsd(run: RunConfig) -> bool:
    return run.optimizer.lr_decay_style == "WSD"


OPTIMIZER_RULES = (
    Rule(
        name="the learning rate is positive and finite",
        about=About.OPTIMIZER,
        holds=lambda run: 0 < run.optimizer.lr < math.inf,
        message=lambda run: f"--lr {run.optimizer.lr} must be above 0; the paper's is 4e-4",
    ),
    Rule(  # the released run held its learning rate flat for 503 B tokens this way (paper, footnote 4)
        name="the schedule falls: 0 <= min_lr < lr",
        about=About.OPTIMIZER,
        holds=lambda run: not _may_fall(run) or 0 <= run.optimizer.min_lr < run.optimizer.lr,
        message=lambda run: (
            f"--min-lr {run.optimizer.min_lr:g} (the recipe's, if not given) must be at least 0 and below --lr "
            f"{run.optimizer.lr:g}, or the learning rate never falls; a tenth of --lr, as in the paper, is "
            f"{run.optimizer.lr / 10:g}"
        ),
    ),
    Rule(
        name="warm-up ends before the schedule does",
        about=About.OPTIMIZER,
        holds=lambda run: 0 <= run.optimizer.lr_warmup_iters < _decay_end(run)[1],
        message=lambda run: (
            "--lr-warmup-iters {} (the recipe's, if not given) must be below {} {}; at most {} (to run only the first "
            "iterations of a longer schedule, keep the schedule's length and give --exit-interval)"
        ).format(run.optimizer.lr_warmup_iters, *_decay_end(run), _decay_end(run)[1] - 1),
    ),
    Rule(
        name="WSD says how long it decays",
        about=About.OPTIMIZER,
        holds=lambda run: not _has_wsd(run) or run.optimizer.lr_wsd_decay_iters is not None,
        message=lambda run: (
            f"--lr-decay-style WSD needs --lr-wsd-decay-iters, the iterations of its decay; at most "
            f"{_longest_decay(run)}, and usual is a tenth of the run: {max(1, run.batch.train_iters // 10)}"
        ),
    ),
    Rule(
        name="the decay of WSD begins after warm-up",
        about=About.OPTIMIZER,
        holds=lambda run: not _has_wsd(run) or 1 <= (run.optimizer.lr_wsd_decay_iters or 0) <= _longest_decay(run),
        message=lambda run: (
            f"--lr-wsd-decay-iters {run.optimizer.lr_wsd_decay_iters} is not within 1 to {_longest_decay(run)}, what "
            f"{' '.join(map(str, _decay_end(run)))} leaves after --lr-warmup-iters {run.optimizer.lr_warmup_iters}; "
            f"nearest: {min(max(1, run.optimizer.lr_wsd_decay_iters or 1), _longest_decay(run))}"
        ),
    ),
    Rule(
        name="AdamW's numbers are in range",
        about=About.OPTIMIZER,
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
