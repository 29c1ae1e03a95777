"""Reads what a run wrote with `--metrics-file`, whoever wrote it: the file is the contract, not our loggers.

Files of earlier versions hold iterations alone, with fewer fields; what a line has not is NaN. Neighbours: `page` and
`plot` show it; `config.metrics_lines` says what the lines are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.metrics_lines import EVENTS
from tinyllama_mcore.config.paths import told_apart

COLUMNS = (
    "iteration",
    "consumed_tokens",
    "lm_loss",
    "grad_norm",
    "lr",
    "iteration_time_s",
    "data_wait_s",
    "tokens_per_s_per_gpu",
    "mfu",
    "peak_memory_gib",
    "skipped",
    "time",
)
"""Fields of an iteration that are read as numbers."""
NEEDED = ("iteration", "consumed_tokens", "lm_loss")
"""Those that every version wrote."""
NORMS, STRAGGLER = "grad_norm_by_group", "straggler"
"""Fields that only some iterations of some runs have."""
_STRAGGLER = {"rank": int, "host": str, "over_median": float, "data_rank": int, "data_host": str, "data_wait_s": float}
"""What is read of a straggler: field -> its type."""
Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """A metrics file."""

    label: str
    """What a legend calls the run: the path of its file."""
    columns: Mapping[str, np.ndarray]
    """Name -> float64 [iterations]; NaN where a line has no value."""
    samples: Mapping[str, np.ndarray]
    """Dataset prefix -> samples drawn of it by then, float64 [iterations]."""
    skip_reasons: Mapping[int, str]
    """Iteration whose update was left out -> why."""
    group_norms: Mapping[int, Mapping[str, float]]
    """Iteration -> gradient norm of each group, where the run was asked for them."""
    stragglers: Mapping[int, Line]
    """Iteration -> its `straggler`, where the run was asked for them."""
    events: Sequence[Line]
    """Lines of the kinds of `metrics_lines.EVENTS`, in order."""
    damage: str | None
    """What is wrong with its end, in a sentence; None where nothing is."""

    def __len__(self) -> int:
        """Iterations."""
        return len(self.columns["iteration"])

    def of(self, kind: str) -> list[Line]:
        """The events of one kind."""
        return [event for event in self.events if event["event"] == kind]


def read(path: str | Path) -> Metrics:
    """Read a metrics file; a last line that is not whole is left out, and `damage` says so.

    Raises:
        ConfigError: the file cannot be read, holds something else, or holds no whole iteration.
    """
    rows: list[Line] = []
    events: list[Line] = []
    lines, damage = _whole_lines(path)
    for number, line in enumerate(lines, 1):
        try:
            fields = _checked(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if number == len(lines) and rows:
                damage = f"line {number:,}, the last one, cannot be read and is left out"
                break
            raise ConfigError(
                f"metrics file {path} holds something else than the lines of --metrics-file, in line {number:,}"
            ) from error
        (events if "event" in fields else rows).append(fields)
    if not rows:
        raise ConfigError(f"metrics file {path} holds no iteration yet")
    return Metrics(
        label=str(path),
        columns={name: np.array([_number(row, name) for row in rows]) for name in COLUMNS},
        samples=_samples(rows),
        skip_reasons={int(row["iteration"]): str(row.get("skip_reason")) for row in rows if row.get("skipped")},
        group_norms={int(row["iteration"]): row[NORMS] for row in rows if row.get(NORMS)},
        stragglers={int(row["iteration"]): row[STRAGGLER] for row in rows if row.get(STRAGGLER)},
        events=[event for event in events if event["event"] in EVENTS],
        damage=damage,
    )


def _whole_lines(path: str | Path) -> tuple[list[bytes], str | None]:
    """The lines that end, and what is wrong with one that does not."""
    try:
        *lines, rest = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"metrics file {path} cannot be read: {error.strerror}") from error
    if not rest:
        return lines, None
    return lines, f"line {len(lines) + 1:,} is cut short and is left out: it is being written, or its writer was ended"


def _checked(line: Line) -> Line:
    """The line; an error where it has not what every line of its kind has."""
    for name in ("iteration",) if "event" in line else NEEDED:
        if isinstance(line[name], bool) or not isinstance(line[name], int | float):
            raise TypeError(name)
    int(line["iteration"])
    if "event" not in line:
        for name in COLUMNS:
            _number(line, name)
        for count in line.get("consumed_by_dataset", {}).values():
            float(count)
        _check_asked_for(line)
    elif not isinstance(line["event"], str):
        raise TypeError("event")
    return line


def _check_asked_for(line: Line) -> None:
    """An error where a field that a flag asks for is there, and is not as `training.metrics` has it."""
    if not all(isinstance(norm, int | float) for norm in (line.get(NORMS) or {}).values()):
        raise TypeError(NORMS)
    if line.get(STRAGGLER):
        for name, kind in _STRAGGLER.items():
            if not isinstance(line[STRAGGLER][name], kind):
                raise TypeError(name)


def _number(line: Line, name: str) -> float:
    value = line.get(name)
    return math.nan if value is None else float(value)


def _samples(rows: Sequence[Line]) -> dict[str, np.ndarray]:
    """Samples by dataset; none of one before it is named."""
    names = dict.fromkeys(name for row in rows for name in row.get("consumed_by_dataset", {}))
    return {name: np.array([float(row.get("consumed_by_dataset", {}).get(name, 0)) for row in rows]) for name in names}


def names_of(runs: Sequence[Metrics]) -> list[str]:
    """Short names of runs: of one the file with its folder, of several what tells them apart."""
    if len(runs) == 1:
        return [str(Path(*Path(runs[0].label).absolute().parts[-2:]))]
    return told_apart([run.label for run in runs])


def config_of(start: Line) -> Mapping[str, Any]:
    """The configuration of a start; empty where it has none."""
    config = start.get("config")
    return config if isinstance(config, Mapping) else {}


def number(event: Line, name: str) -> float:
    """A number of an event; NaN where it is none."""
    value = event.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def losses_by_dataset(event: Line) -> Iterator[tuple[str, float]]:
    """(prefix, loss) of a validation."""
    found = event.get("by_dataset")
    for prefix, entry in found.items() if isinstance(found, Mapping) else ():
        yield prefix, number(entry, "loss") if isinstance(entry, Mapping) else math.nan
