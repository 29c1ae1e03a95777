"""Where the records of a run go: the console, a file of JSON lines, TensorBoard and other monitors, only on rank 0.

A resumed run continues the same files: what an earlier attempt wrote beyond the resumed iteration is dropped, so
that each iteration stands once. Neighbours: `metrics` makes the records, the loop hands them over, `console`
prints them, `monitors` has CSV files and Weights & Biases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from tinyllama_mcore.checkpoint.manifest import Event
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.training.console import ConsoleLogger
from tinyllama_mcore.training.metrics import Meter, StepRecord
from tinyllama_mcore.training.monitors import CsvLogger, ScalarLogger, WandbLogger

METRICS_LINE_START = b'{"iteration": '
"""How every line of a metrics file begins: what tells one that was cut short from a file that is somebody else's."""


class Logger(Protocol):
    """Takes what the loop reports."""

    def step(self, record: StepRecord) -> None:
        """One iteration is done."""

    def evaluation(self, iteration: int, loss: float) -> None:
        """The model was evaluated after `iteration`: mean validation loss in nats a token."""

    def saved(self, iteration: int, seconds: float, *, in_background: bool) -> None:
        """Training waited `seconds` for the checkpoint of `iteration`: until it was written, or copied to be."""

    def went_back(self, event: Event, iteration: int) -> None:
        """The run rolled back to its checkpoint of `iteration`; later iterations will be reported again."""

    def close(self) -> None:
        """The run is over; nothing more comes."""


class JsonLinesLogger:
    """One line an iteration, floats with all their digits, flushed as written. Evaluations are not iterations."""

    def __init__(self, path: str, *, start_iteration: int) -> None:
        """Append to `path` after its line for `start_iteration`; what stands beyond it is dropped.

        Raises:
            ConfigError: the path cannot be written, or holds something else than metrics.
        """
        self.file = open_metrics(path, "a+b")
        self.file.truncate(offset_after(self.file, start_iteration))

    def step(self, record: StepRecord) -> None:
        """Write the record."""
        self.file.write(json.dumps(asdict(record)).encode() + b"\n")
        self.file.flush()

    def evaluation(self, iteration: int, loss: float) -> None:
        """Nothing: the file holds one line an iteration."""

    def saved(self, iteration: int, seconds: float, *, in_background: bool) -> None:
        """Nothing, likewise."""

    def went_back(self, event: Event, iteration: int) -> None:
        """Drop the lines beyond `iteration`: each iteration stands once. Later lines count the return."""
        self.file.truncate(offset_after(self.file, iteration))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def open_metrics(path: str, mode: str) -> BinaryIO:
    """Open a metrics file, in a directory that is made where it is missing; ConfigError where that is not allowed."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return cast(BinaryIO, open(path, mode))
    except OSError as error:
        raise ConfigError(f"--metrics-file {path} cannot be written: {error.strerror}") from error


def offset_after(file: BinaryIO, iteration: int) -> int:
    """Bytes of a metrics file up to the first line beyond `iteration`; one that a crash cut short counts as beyond.

    Raises:
        ConfigError: the file holds something else than metrics, and is left as it is.
    """
    file.seek(0)
    offset = 0
    for line in file:
        if not line.endswith(b"\n") and METRICS_LINE_START.startswith(line[: len(METRICS_LINE_START)]):
            break
        try:
            if json.loads(line)["iteration"] > iteration:
                break
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--metrics-file {file.name} holds something else than metrics: name a new file"
            ) from error
        offset += len(line)
    return offset


class TensorBoardLogger(ScalarLogger):
    """Scalars by iteration, under the tags of `monitors.SCALARS`."""

    def __init__(self, directory: str, *, start_iteration: int) -> None:
        """Write event files into `directory`; TensorBoard hides earlier events beyond `start_iteration`."""
        self.directory = directory
        self._open(start_iteration)

    def _open(self, iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(self.directory, purge_step=iteration + 1)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """One event a tag."""
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, iteration)

    def take_back(self, iteration: int) -> None:
        """Go on in a new file that hides what lies beyond `iteration`."""
        self.writer.close()
        self._open(iteration)

    def close(self) -> None:
        """Write what is still in memory."""
        self.writer.close()


def loggers_for(run: RunConfig, meter: Meter, *, rank: int, start_iteration: int) -> tuple[Logger, ...]:
    """The loggers of one process: those that the run asks for on rank 0, none elsewhere."""
    if rank != 0:
        return ()
    loggers: list[Logger] = [ConsoleLogger(meter, batch=run.batch, interval=run.loop.log_interval)]
    if run.loop.metrics_file:
        loggers.append(JsonLinesLogger(run.loop.metrics_file, start_iteration=start_iteration))
    if run.loop.tensorboard_dir:
        loggers.append(TensorBoardLogger(run.loop.tensorboard_dir, start_iteration=start_iteration))
    if run.loop.csv_dir:
        loggers.append(CsvLogger(run.loop.csv_dir, start_iteration=start_iteration))
    if run.loop.wandb is not None:
        loggers.append(WandbLogger(run.loop.wandb))
    return tuple(loggers)
