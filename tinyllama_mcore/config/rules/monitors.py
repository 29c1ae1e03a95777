"""Rules of the JSON's monitors: what they are written with is installed, and there is a place to write to.

Neighbours: `deepspeed` reads the blocks, `training.monitors` writes. Nothing is imported here: that a package can
be found is all that is asked.
"""

from __future__ import annotations

from collections.abc import Callable

from tinyllama_mcore.config import packages
from tinyllama_mcore.config.paths import unwritable
from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import RunConfig


def _installed(package: str, wanted: Callable[[RunConfig], object]) -> Rule:
    """Who wants it needs the package."""
    return Rule(
        name=f"{package} is installed where it is asked for",
        about=About.MONITORS,
        holds=lambda run: not wanted(run) or packages.is_installed(package),
        message=lambda run: (
            f"{run.sharding.source} or a flag asks for {package}: {packages.missing(package)}; or leave it out, in the "
            f'JSON by "enabled": false'
        ),
    )


MONITOR_RULES = (
    _installed("tensorboard", lambda run: run.loop.tensorboard_dir),
    _installed("wandb", lambda run: run.loop.wandb),
    Rule(
        name="csv_monitor can be written",
        about=About.MONITORS,
        holds=lambda run: run.loop.csv_dir is None or unwritable(run.loop.csv_dir) is None,
        message=lambda run: (
            f"{run.sharding.source}: csv_monitor would write to {run.loop.csv_dir}, which cannot be written; "
            "give it a writable output_path"
        ),
    ),
)
