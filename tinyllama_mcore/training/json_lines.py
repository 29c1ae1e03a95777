"""The metrics file as a logger: a line an iteration and a line an event, in the form of `config.metrics_lines`.

A run that goes on adds to the same file. What an earlier attempt wrote beyond the iteration that it goes on from is
dropped, so that each iteration stands once; starts and rollbacks stay, and say how much was dropped. Neighbours:
`loggers` decides which loggers a run has, `outputs` asks whose the file is, `reporting.metrics_file` reads it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from tinyllama_mcore.checkpoint.manifest import Event
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.metrics_lines import HISTORY, LINE_START
from tinyllama_mcore.training.metrics import ASKED_FOR, StepRecord, Validation, perplexity


@dataclass(kw_only=True)
class Beyond:
    """What a metrics file holds beyond an iteration."""

    offset: int = 0
    """Bytes before it."""
    history: bytes = b""
    """Lines of it that stay."""
    iterations: int = 0
    """Iterations that do not."""
    seconds: float = 0.0
    """Of those iterations, and of the evaluations and saves among them."""
    last_time: float | None = None
    """When the last line of the whole file was written; None where no line says."""
    has_lines: bool = False
    """Whether a whole line would be dropped."""

    def add(self, line: bytes, fields: Mapping[str, Any]) -> None:
        """Count a line that lies beyond."""
        if fields.get("event") in HISTORY:
            self.history += line
            return
        self.has_lines = True
        self.iterations += "event" not in fields
        self.seconds += fields.get("seconds", fields.get("iteration_time_s", 0.0))


class JsonLinesLogger:
    """Lines with all digits of their floats, flushed as written."""

    def __init__(self, path: str, *, start_iteration: int, start: Mapping[str, Any] | None = None) -> None:
        """Append to `path` after what it holds up to `start_iteration`, beginning with the line of this start.

        A run from iteration 0 begins the file anew. `start` holds the fields of that line, as `started` gives them.

        Raises:
            ConfigError: the path cannot be written, or holds something else than metrics.
        """
        self.file = open_metrics(path, "a+b")
        lost = beyond(self.file, start_iteration)
        if start_iteration == 0:
            lost = Beyond()
        self._take_back(lost)
        fields, stopped = {"start_s": 0.0, **(start or {})}, None
        if lost.last_time is not None:  # a second run of one process began after the first, whatever the process's age
            since = max(time.time() - lost.last_time, 0.0)
            fields["start_s"] = min(fields["start_s"], since)
            stopped = since - fields["start_s"]
        self._event("start", start_iteration, **fields, **_told(lost), stopped_s=stopped)

    def step(self, record: StepRecord) -> None:
        """Write the record, without what nobody asked for."""
        fields = asdict(record).items()
        self._write({name: value for name, value in fields if value is not None or name not in ASKED_FOR})

    def evaluation(self, iteration: int, found: Validation) -> None:
        """Write the losses and their perplexities."""
        by_dataset = {p: {"loss": loss, "perplexity": perplexity(loss)} for p, loss in found.by_dataset.items()}
        self._event(
            "validation",
            iteration,
            loss=found.loss,
            perplexity=perplexity(found.loss),
            by_dataset=by_dataset,
            seconds=found.seconds,
        )

    def saved(self, iteration: int, seconds: float, *, in_background: bool) -> None:
        """Write how long training waited."""
        self._event("save", iteration, seconds=seconds, in_background=in_background)

    def went_back(self, event: Event, iteration: int) -> None:
        """Drop the lines beyond `iteration`, and write that."""
        lost = beyond(self.file, iteration)
        self._take_back(lost)
        samples = {"first_sample": event.first_sample, "end_sample": event.end_sample}
        self._event("rollback", iteration, back_from=event.iteration, reason=event.reason, **samples, **_told(lost))

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _event(self, kind: str, iteration: int, **fields: object) -> None:
        self._write({"iteration": iteration, "event": kind, "time": time.time(), **fields})

    def _write(self, fields: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(fields).encode() + b"\n")
        self.file.flush()

    def _take_back(self, lost: Beyond) -> None:
        self.file.truncate(lost.offset)
        self.file.write(lost.history)
        self.file.flush()


def _told(lost: Beyond) -> dict[str, Any]:
    return {"lost_iterations": lost.iterations, "lost_s": lost.seconds}


def open_metrics(path: str, mode: str) -> BinaryIO:
    """Open a metrics file, in a folder that is made where it is missing; ConfigError where that is not allowed."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return cast(BinaryIO, open(path, mode))
    except OSError as error:
        raise ConfigError(f"--metrics-file {path} cannot be written: {error.strerror}") from error


def beyond(file: BinaryIO, iteration: int) -> Beyond:
    """What a metrics file holds beyond `iteration`; a last line that a crash cut short lies beyond, and has no value.

    Raises:
        ConfigError: the file holds something else than metrics, and is left as it is.
    """
    file.seek(0)
    found, is_beyond = Beyond(), False
    for line in file:
        if not line.endswith(b"\n") and LINE_START.startswith(line[: len(LINE_START)]):
            break
        try:
            fields = json.loads(line)
            is_beyond = is_beyond or (fields["iteration"] > iteration and fields.get("event") not in HISTORY)
            if is_beyond:
                found.add(line, fields)
            else:
                found.offset += len(line)
            if math.isfinite(stamp := fields.get("time", math.nan)):
                found.last_time = stamp
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"--metrics-file {file.name} holds something else than metrics: name a new file"
            ) from error
    return found
