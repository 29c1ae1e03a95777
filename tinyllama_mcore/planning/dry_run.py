"""`--dry-run`: what a start would refuse, and what the run would need, with nothing started.

Neighbours: `pretrain` asks, and opens data and checkpoint itself where they are here; `memory` and `throughput`
predict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tinyllama_mcore.config import describe
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.parameters import count_parameters
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.rules.rule import About
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.planning import memory, report, throughput
from tinyllama_mcore.planning.gpus import GPUS


def absent(run: RunConfig, *, has_gpu: Callable[[], bool]) -> tuple[str, ...]:
    """What the run would read or write and cannot here, in the words of the rules.

    It is reported and not refused: a plan is made before the data are, and often on another machine.

    Args:
        run: the run, in the world it names.
        has_gpu: whether that world has GPUs; called only where a rule needs to know.

    Raises:
        ConfigError: any other rule is broken.
    """
    missing = []
    for rule in legality.rows(has_gpu=has_gpu):
        if not rule.holds(run):
            if rule.about is not About.FILES:
                raise ConfigError(rule.message(run))
            missing.append(rule.message(run))
    return tuple(missing)


def lines(run: RunConfig, missing: Sequence[str]) -> Iterator[str]:
    """The run's arithmetic, its memory by part, and each GPU's verdict; its vocabulary size is known by now."""
    yield from describe.lines(run, parameters=count_parameters(run.model))
    yield from (f"not here     {message}" for message in missing)
    yield from report.memory_lines(run)
    most = memory.worst(run).total
    at = "" if run.batch.rampup_batch_size is None else " after the ramp"
    for gpu in GPUS.values():
        if run.float8.recipe is not None and not gpu.float8:
            yield f"on           {gpu.name}: does not multiply in float8"
            continue
        speed = throughput.tokens_per_second(run, gpu)
        yield f"on           {gpu.name}: {report.verdict(most, gpu)}, {speed:,.0f} tokens/s/GPU predicted{at}"
    yield "dry run      nothing was started"
