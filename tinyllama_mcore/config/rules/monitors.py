"""Rules of the JSON's monitors: what they are written with is installed, and there is a place to write to.

Neighbours: `deepspeed` reads the blocks, `training.monitors` writes. Nothing is imported here: that a package can
be found is all that is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from tinyllama_mcore.config.paths import unwritable
from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import RunConfig


def _there(package: str) -> bool:
    """Whether the package can be imported; a mere directory of its name, as wandb makes, does not count."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def _installed(package: str, who: str, wanted: Callable[[RunConfig], object]) -> Rule:
    """`who` needs the package."""
    return Rule(
        name=f"{package} is installed where it is asked for",
        about=About.MONITORS,
        holds=lambda run: not wanted(run) or _there(package),
        message=lambda run: (
            f"{run.sharding.source}: {who} needs the package {package}, which is not installed: pip install {package}, "
            f'or write "enabled": false'
        ),
    )


MONITOR_RULES = (
    _installed("tensorboard", "the tensorboard block or --tensorboard-dir", lambda run: run.loop.tensorboard_dir),
    _installed("wandb", "the wandb block", lambda run: run.loop.wandb),
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
