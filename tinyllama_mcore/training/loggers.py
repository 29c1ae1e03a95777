"""Where the records of a run go: the console, a file of JSON lines, TensorBoard and other monitors, on rank 0 alone.

A resumed run goes on in the same files: what an earlier attempt wrote beyond the resumed iteration is dropped, so
that each iteration stands once. Neighbours: `metrics` makes the records, the loop hands them over, `monitors` has
CSV files and Weights & Biases.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Protocol, TextIO, cast

from tinyllama_mcore.checkpoint.manifest import Event
from tinyllama_mcore.config.schema import ConfigError, RunConfig
from tinyllama_mcore.training.metrics import Meter, StepRecord
from tinyllama_mcore.training.monitors import CsvLogger, ScalarLogger, WandbLogger

METRICS_LINE_START = b'{"iteration": '
"""How every line of a metrics file begins: what tells one that was cut short from a file that is somebody else's."""


class Logger(Protocol):
    """Takes what the loop has to tell."""

    def step(self, record: StepRecord) -> None:
        """One iteration is done."""

    def evaluation(self, iteration: int, loss: float) -> None:
        """The model was evaluated after `iteration`: mean validation loss in nats a token."""

    def saved(self, iteration: int, seconds: float, *, in_background: bool) -> None:
        """Training waited `seconds` for the checkpoint of `iteration`: until it was written, or copied to be."""

    def went_back(self, event: Event, iteration: int) -> None:
        """The run took up its checkpoint of `iteration`; what was told beyond it will be told anew."""

    def close(self) -> None:
        """The run is over; nothing more comes."""


class ConsoleLogger:
    """One aligned line an interval, averaged over it."""

    def __init__(self, meter: Meter, *, train_iters: int, interval: int, out: TextIO = sys.stdout) -> None:
        """Print to `out` every `interval` iterations of a run of `train_iters`."""
        self.meter = meter
        self.train_iters = train_iters
        self.interval = interval
        self.out = out
        self.pending: list[StepRecord] = []
        self._print(describe_peak(meter))

    def step(self, record: StepRecord) -> None:
        """Keep the record, and print a line where the interval or the run ends, or where an update was left out."""
        self.pending.append(record)
        if record.skip_reason is not None:
            self._print(f"{self._progress(record.iteration)} | update left out: {record.skip_reason}")
        if record.iteration % self.interval == 0 or record.iteration == self.train_iters:
            self._flush()

    def evaluation(self, iteration: int, loss: float) -> None:
        """Print the validation loss and its perplexity."""
        perplexity = math.exp(loss) if loss < 100 else math.inf
        self._print(f"{self._progress(iteration)} | validation loss {loss:.4f} | perplexity {perplexity:.2f}")

    def saved(self, iteration: int, seconds: float, *, in_background: bool) -> None:
        """Print what was waited for."""
        done = (
            f"copied in {seconds:.2f} s, is written beside training" if in_background else f"written in {seconds:.2f} s"
        )
        self._print(f"{self._progress(iteration)} | checkpoint {done}")

    def went_back(self, event: Event, iteration: int) -> None:
        """Print why, and which samples are stepped over; the interval begins anew."""
        self.pending.clear()
        window = f"samples {event.first_sample:,} to {event.end_sample - 1:,} are stepped over"
        self._print(f"{self._progress(event.iteration)} | {event.reason}; {window}")

    def close(self) -> None:
        """Print what an unfinished interval still holds."""
        if self.pending:
            self._flush()

    def _flush(self) -> None:
        line = interval_line(self.pending, iterations_left=self.train_iters - self.pending[-1].iteration)
        self._print(f"{self._progress(self.pending[-1].iteration)} | {line}")
        self.pending.clear()

    def _progress(self, iteration: int) -> str:
        return f"iteration {iteration:>{len(str(self.train_iters))}}/{self.train_iters}"

    def _print(self, line: str) -> None:
        print(line, file=self.out, flush=True)


def describe_peak(meter: Meter) -> str:
    """The sentence that says what MFU is a share of."""
    if meter.peak is None:
        return f"MFU: n/a, no dense bf16 peak is known for {meter.device_name or 'a CPU'}"
    return (
        f"MFU: share of {meter.peak / 1e12:g} TFLOP/s, the dense bf16 peak of one {meter.device_name}; "
        "full counts the whole attention matrix, causal the half that is used"
    )


def interval_line(records: Sequence[StepRecord], *, iterations_left: int) -> str:
    """The log line for the records of one interval: loss is averaged over the updates that were made, rates by time."""
    last = records[-1]
    seconds = sum(r.iteration_time_s for r in records)
    made = [r.lm_loss for r in records if not r.skipped]
    skipped = len(records) - len(made)

    def rate(name: str) -> float:
        return sum(getattr(r, name) * r.iteration_time_s for r in records) / seconds

    def share(name: str) -> str:
        return "n/a" if getattr(last, name) is None else f"{rate(name):.1%}"

    eta = timedelta(seconds=round(iterations_left * seconds / len(records)))
    columns = [
        f"tokens {last.consumed_tokens:>9.3e}{_of_each(last)}",
        f"loss {sum(made) / len(made) if made else math.nan:7.4f}",
        f"grad norm {last.grad_norm:7.3f}",
        f"lr {last.lr:.3e}",
        f"{rate('tokens_per_s_per_gpu'):>8,.0f} tokens/s/GPU",
        f"full {rate('tflops_per_gpu'):7.3f} TFLOP/s, MFU {share('mfu'):>5}",
        f"causal {rate('tflops_per_gpu_causal'):7.3f} TFLOP/s, MFU {share('mfu_causal'):>5}",
        f"memory {last.peak_memory_gib:6.2f} GiB",
        f"{seconds / len(records):7.3f} s/iteration",
        f"ETA {eta}",
    ]
    return " | ".join(columns + [f"skipped {skipped}"] * bool(skipped))


def _of_each(record: StepRecord) -> str:
    """The tokens seen of each dataset of a blend."""
    seen = record.consumed_tokens_by_dataset
    parts = ", ".join(f"{Path(prefix).name} {tokens:.3e}" for prefix, tokens in seen.items())
    return f" ({parts})" if len(seen) > 1 else ""


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
    """Open a metrics file, in a folder that is made where it is missing; ConfigError where that is not allowed."""
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
    loggers: list[Logger] = [ConsoleLogger(meter, train_iters=run.batch.train_iters, interval=run.loop.log_interval)]
    if run.loop.metrics_file:
        loggers.append(JsonLinesLogger(run.loop.metrics_file, start_iteration=start_iteration))
    if run.loop.tensorboard_dir:
        loggers.append(TensorBoardLogger(run.loop.tensorboard_dir, start_iteration=start_iteration))
    if run.loop.csv_dir:
        loggers.append(CsvLogger(run.loop.csv_dir, start_iteration=start_iteration))
    if run.loop.wandb is not None:
        loggers.append(WandbLogger(run.loop.wandb))
    return tuple(loggers)
