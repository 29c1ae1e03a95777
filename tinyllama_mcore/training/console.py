"""What the console shows while a run trains: a line for each interval, and now and then a few more figures.

Every figure of every iteration, with all its digits, is in the metrics file. Neighbour: `loggers` makes the files.
"""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from tinyllama_mcore.checkpoint.manifest import Event
from tinyllama_mcore.config.paths import told_apart
from tinyllama_mcore.config.schema import BatchConfig
from tinyllama_mcore.training.metrics import Meter, StepRecord, Validation, perplexity
from tinyllama_mcore.training.stragglers import Straggler

COLUMNS = 120
"""Width that every line of an interval fits."""
MORE_EVERY = 10
"""Interval lines between the lines that say more."""
INDENT = " " * len("12:34:56  ")


class ConsoleLogger:
    """One line an interval, averaged over it, with the time of day."""

    def __init__(
        self,
        meter: Meter,
        *,
        batch: BatchConfig,
        interval: int,
        out: TextIO = sys.stdout,
        clock: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
    ) -> None:
        """Print to `out` every `interval` iterations of a run of that batch and length."""
        self._batch, self._interval, self._out, self._clock = batch, interval, out, clock
        self._train_iters = batch.train_iters
        self._on_gpu = meter.device_name is not None
        self._pending: list[StepRecord] = []
        self._lines = 0
        if (peak := describe_peak(meter)) is not None:
            print(peak, file=out, flush=True)

    def step(self, record: StepRecord) -> None:
        """Keep the record; print a line where the interval or the run ends, or where an update was skipped."""
        self._pending.append(record)
        if record.skip_reason is not None:
            self._print(record.iteration, f"update skipped: {record.skip_reason}")
        if record.iteration % self._interval == 0 or record.iteration == self._train_iters:
            self._flush()

    def evaluation(self, iteration: int, found: Validation) -> None:
        """Print the validation loss and its perplexity, and those of each dataset where there are several."""
        self._print(iteration, f"validation loss {found.loss:.4f}  perplexity {perplexity(found.loss):.2f}")
        for name, loss in zip(told_apart(found.by_dataset), found.by_dataset.values(), strict=True):
            line = f"{name}: loss {loss:.4f}  perplexity {perplexity(loss):.2f}"
            print(INDENT + line, file=self._out, flush=True)

    def saved(self, iteration: int, seconds: float, *, in_background: bool) -> None:
        """Print what was waited for."""
        done = "copied in {:.2f} s, being written in the background" if in_background else "written in {:.2f} s"
        self._print(iteration, f"checkpoint {done.format(seconds)}")

    def went_back(self, event: Event, iteration: int) -> None:
        """Print why, and which samples are skipped; the interval begins anew."""
        self._pending.clear()
        skipped = f"samples {event.first_sample:,} to {event.end_sample - 1:,} are skipped"
        self._print(event.iteration, f"{event.reason}; {skipped}")

    def close(self) -> None:
        """Print what an unfinished interval still holds."""
        if self._pending:
            self._flush()

    def _flush(self) -> None:
        """The line of the interval; with the first, every `MORE_EVERY`-th and the last of the run, what says more."""
        last = self._pending[-1]
        end = self._batch.sizes.samples_before(self._train_iters - last.iteration, consumed=last.consumed_samples)
        self._print(last.iteration, interval_line(self._pending, end - last.consumed_samples, self._on_gpu))
        if last.straggler is not None:
            for line in _wrapped(straggler_text(last.straggler)):
                print(INDENT + line, file=self._out, flush=True)
        if self._lines % MORE_EVERY == 0 or last.iteration == self._train_iters:
            for line in more_lines(self._pending, self._on_gpu):
                print(INDENT + line, file=self._out, flush=True)
        self._lines += 1
        self._pending.clear()

    def _print(self, iteration: int, text: str) -> None:
        progress = f"iteration {iteration:>{len(str(self._train_iters))}}/{self._train_iters}"
        print(f"{self._clock()}  {progress}  {text}", file=self._out, flush=True)


def describe_peak(meter: Meter) -> str | None:
    """The sentence that says what MFU is a share of, or why a GPU has none; None on a CPU."""
    if meter.device_name is None:
        return None
    if meter.peak is None:
        return f"no MFU is shown: no dense bf16 peak is known for {meter.device_name}"
    return f"MFU is the share of {meter.peak / 1e12:g} TFLOP/s, the dense bf16 peak of one {meter.device_name}"


def interval_line(records: Sequence[StepRecord], samples_left: int, on_gpu: bool) -> str:
    """The line of one interval: loss is averaged over the updates that were made, rates by time."""
    last = records[-1]
    made = [record.lm_loss for record in records if not record.skipped]
    seconds_a_sample = sum(r.iteration_time_s for r in records) / sum(r.global_batch_size for r in records)
    unit = "tokens/s/GPU" if on_gpu else "tokens/s"
    columns = [
        f"loss {sum(made) / len(made) if made else math.nan:.4f}",
        f"norm {_short(last.grad_norm)}",
        f"lr {last.lr:.2e}",
        f"{_rate(records, 'tokens_per_s_per_gpu'):,.0f} {unit}",
        *([f"MFU {_rate(records, 'mfu'):.1%}"] if last.mfu is not None else []),
        f"ETA {_duration(samples_left * seconds_a_sample)}",
    ]
    return "  ".join(columns)


def more_lines(records: Sequence[StepRecord], on_gpu: bool) -> Iterator[str]:
    """What changes slowly: memory, time, arithmetic by both counts of attention; tokens seen, of each dataset too."""
    last = records[-1]
    seconds = sum(record.iteration_time_s for record in records) / len(records)
    figures = [f"memory {last.peak_memory_gib:.2f} GiB", f"{seconds:.3f} s an iteration"]
    if on_gpu:
        counts = {"full": ("tflops_per_gpu", "mfu"), "causal": ("tflops_per_gpu_causal", "mfu_causal")}
        for attention, (rate, share) in counts.items():
            mfu = f" (MFU {_rate(records, share):.1%})" if getattr(last, share) is not None else ""
            figures.append(f"{_rate(records, rate):.1f} TFLOP/s {attention}{mfu}")
    yield ", ".join(figures)
    seen = last.consumed_tokens_by_dataset
    named = zip(told_apart(seen), seen.values(), strict=True)
    parts = [f"{name} {tokens:,}" for name, tokens in named] if len(seen) > 1 else []
    text = ": ".join([f"tokens {last.consumed_tokens:,}", *[", ".join(parts)] * bool(parts)])
    yield from _wrapped(text)


def straggler_text(found: Straggler) -> str:
    """Which rank is the slowest and by how much, and which waits longest for data."""
    return (
        f"slowest rank {found.rank} ({found.host}): {1e3 * found.pass_s:,.2f} ms a pass, {found.over_median:.1%} over "
        f"the median; waited longest for data: rank {found.data_rank} ({found.data_host}), "
        f"{1e3 * found.data_wait_s:,.2f} ms"
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS - len(INDENT), break_long_words=False, break_on_hyphens=False)


def _rate(records: Sequence[StepRecord], name: str) -> float:
    """Mean of a rate over an interval, weighted by the time of each iteration."""
    seconds = sum(record.iteration_time_s for record in records)
    return sum(getattr(record, name) * record.iteration_time_s for record in records) / seconds


def _short(norm: float) -> str:
    """Three decimals, from 100 on none; a norm that is hardly there in one digit."""
    return f"{norm:.0f}" if norm >= 100 else f"{norm:.0e}" if 0 < norm < 1e-4 else f"{norm:.3f}"


def _duration(seconds: float) -> str:
    """`3:04:05`, from a day on `2d 3h`, from ten on `12d`."""
    hours, rest = divmod(round(seconds), 3600)
    days = hours // 24
    if days:
        return f"{days}d {hours % 24}h" if days < 10 else f"{days}d"
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
