"""What follows from which fields were given, on a command line and in Python alike.

A recipe and the schema have a value for every field; what somebody gave beside them may leave no meaning to one of
these. Neighbours: `cli` and `compose` know what was given; `rules` judges the values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from tinyllama_mcore.config.data_config import Blend, DataConfig
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.flags import DECAY_STYLES
from tinyllama_mcore.config.schema import OptimizerConfig

OF_WSD = ("lr_wsd_decay_iters", "lr_wsd_decay_style")
MEANINGLESS = dict.fromkeys(DECAY_STYLES, OF_WSD) | {"WSD": (), "constant": (*OF_WSD, "lr_decay_iters")}
"""--lr-decay-style -> fields that mean nothing under it."""
ALL_TO_TRAIN_ON = (100.0, 0.0, 0.0)
"""The shares of --split where validation has datasets of its own."""


def optimizer_beside(given: Mapping[str, Any], recipe: OptimizerConfig) -> OptimizerConfig:
    """The recipe's optimizer beside the fields that are given, which the caller puts over it.

    What the recipe says of a decay style that they replace goes with it. ConfigError where one of them has no effect.
    """
    style, least = given.get("lr_decay_style", recipe.lr_decay_style), given.get("min_lr")
    if style == "constant" and isinstance(least, int | float):
        raise ConfigError(
            f"--min-lr {least:g} does nothing here, as --lr-decay-style constant never falls; leave it out, "
            "or give another style"
        )
    if style == recipe.lr_decay_style:
        return recipe
    return replace(recipe, **{name: getattr(OptimizerConfig, name) for name in MEANINGLESS.get(str(style), ())})


def data_of(asked: DataConfig, given: Collection[str]) -> DataConfig:
    """`asked` with weights as shares, and all documents trained on where other datasets validate.

    Args:
        asked: as it was given.
        given: names of the fields that were; the others have their defaults.

    Raises:
        ConfigError: two of them say what to validate on.
    """
    later = tuple(replace(each, blend=shares(each.blend)) for each in asked.later_blends)
    data = replace(asked, blend=shares(asked.blend), later_blends=later, valid_blend=shares(asked.valid_blend))
    if not data.valid_blend:
        return data
    if "split" in given and data.split != ALL_TO_TRAIN_ON:
        raise ConfigError(
            "--valid-data-path and --split both say what to validate on; with --valid-data-path, all documents of "
            "--data-path are trained on: leave --split out"
        )
    return replace(data, split=ALL_TO_TRAIN_ON)


def shares(blend: Blend) -> Blend:
    """The blend with weights that add up to 1; what cannot be shares stays as it is, and `rules` refuses it."""
    total = sum(weight for weight, _ in blend)
    if not 0 < total < math.inf or min(weight for weight, _ in blend) < 0:
        return blend
    return tuple((weight / total, prefix) for weight, prefix in blend)
