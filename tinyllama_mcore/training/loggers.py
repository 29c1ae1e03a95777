"""Where the records of a run go: the console, the metrics file, TensorBoard and other monitors, only on rank 0.

A resumed run continues the same files: what an earlier attempt wrote beyond the resumed iteration is dropped, so
that each iteration stands once. Neighbours: `metrics` makes the records, the loop hands them over, `console`
prints them, `json_lines` keeps them all, `monitors` has CSV files and Weights & Biases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from tinyllama_mcore.checkpoint.manifest import Event
from tinyllama_mcore.config.data_config import LaterBlend
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.loop_config import WandbConfig
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.training.console import ConsoleLogger
from tinyllama_mcore.training.json_lines import JsonLinesLogger
from tinyllama_mcore.training.metrics import Meter, StepRecord, Validation
from tinyllama_mcore.training.monitors import CsvLogger, ScalarLogger, WandbLogger


class Logger(Protocol):
    """Takes what the loop reports."""

    def step(self, record: StepRecord) -> None:
        """One iteration is done."""

    def evaluation(self, iteration: int, found: Validation) -> None:
        """The model was evaluated after `iteration`."""

    def saved(self, iteration: int, seconds: float, *, in_background: bool) -> None:
        """Training waited `seconds` for the checkpoint of `iteration`: until it was written, or copied to be."""

    def went_back(self, event: Event, iteration: int) -> None:
        """The run rolled back to its checkpoint of `iteration`; later iterations will be reported again."""

    def blend_began(self, iteration: int, later: LaterBlend) -> None:
        """`iteration` is the first that has samples of a blend that was planned."""

    def close(self) -> None:
        """The run is over; nothing more comes."""


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


def loggers_for(run: RunConfig, meter: Meter, *, start_iteration: int, start: Mapping[str, Any]) -> tuple[Logger, ...]:
    """The loggers that the run asks for, on the rank that has them. `start`: see `started`.

    Raises:
        ConfigError: one cannot be opened; those before it are closed again.
    """
    loop = run.loop
    wanted: tuple[tuple[str, str | WandbConfig | None, Callable[[Any], Logger]], ...] = (
        ("--metrics-file", loop.metrics_file, partial(JsonLinesLogger, start_iteration=start_iteration, start=start)),
        ("--tensorboard-dir", loop.tensorboard_dir, partial(TensorBoardLogger, start_iteration=start_iteration)),
        ("csv_monitor:", loop.csv_dir, partial(CsvLogger, start_iteration=start_iteration)),
        ("wandb block:", loop.wandb, WandbLogger),
    )
    loggers: list[Logger] = [ConsoleLogger(meter, batch=run.batch, interval=loop.log_interval)]
    try:
        for name, where, logger in wanted:
            if where is not None:
                loggers.append(_opened(name, where, logger))
    except ConfigError:
        for opened in loggers:
            opened.close()
        raise
    return tuple(loggers)


def _opened(name: str, where: str | WandbConfig, logger: Callable[[Any], Logger]) -> Logger:
    try:
        return logger(where)
    except OSError as error:
        raise ConfigError(f"{name} {where} cannot be written: {error.strerror or error}") from error
