"""Judging a run by every rule: `check` refuses it with the message of the first that is broken.

Neighbours: the other files of this directory hold the rows; `cli` makes the RunConfig that is judged, before a process
group or a GPU is touched; docs/reference/rules.md lists the rows in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.rules.data import DATA_RULES
from tinyllama_mcore.config.rules.device import Device, device_rules
from tinyllama_mcore.config.rules.files import FILE_RULES
from tinyllama_mcore.config.rules.flags import FLAG_RULES
from tinyllama_mcore.config.rules.kernels import KERNEL_RULES
from tinyllama_mcore.config.rules.layout import LAYOUT_RULES
from tinyllama_mcore.config.rules.model import MODEL_RULES
from tinyllama_mcore.config.rules.monitors import MONITOR_RULES
from tinyllama_mcore.config.rules.optimizer import OPTIMIZER_RULES
from tinyllama_mcore.config.rules.ramp import RAMP_RULES
from tinyllama_mcore.config.rules.rule import Rule
from tinyllama_mcore.config.rules.sharding import SHARDING_RULES
from tinyllama_mcore.config.schema import RunConfig

RULES = (
    *MODEL_RULES,
    *LAYOUT_RULES,
    *RAMP_RULES,
    *SHARDING_RULES,
    *KERNEL_RULES,
    *OPTIMIZER_RULES,
    *DATA_RULES,
    *FILE_RULES,
    *MONITOR_RULES,
    *FLAG_RULES,
)
"""The rows that judge only the run, not the device. Later rows rely on earlier ones having passed."""


def check(run: RunConfig, **device: Callable[[], bool]) -> None:
    """Refuse a run that breaks a rule. Only the first one is reported: later ones rely on it.

    Args:
        run: the run; its vocabulary size need not be known yet.
        device: what it would run on, by the fields of `Device`.

    Raises:
        ConfigError: with the message of the first row that is broken.
    """
    for rule in rows(**device):
        if not rule.holds(run):
            raise ConfigError(rule.message(run))


def rows(**device: Callable[[], bool]) -> Iterator[Rule]:
    """Every row in the order of judging: those of the run, then those that ask for the device."""
    yield from RULES
    yield from device_rules(Device(**device))
