"""`--profile A:B`: where the time of some iterations goes: a table by kind, torch's trace, and a snapshot of memory.

Only the first rank is profiled, and only its training steps. Under the profiler the host is slower, so idle time is an
upper bound where the host is the limit, and the throughput of these iterations is not the run's.
Neighbour: `loop` says when.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinyllama_mcore.config.loop_config import LoopConfig

TABLE, MEMORY = "iterations_{}-{}.txt", "iterations_{}-{}.memory.pickle"
"""The table, and torch.cuda.memory's snapshot; named by the iterations that were profiled."""
TRACE = "iteration_{}.trace.json.gz"
"""torch.profiler's trace of one, for a browser's Perfetto."""
SYNCHRONIZATIONS = frozenset({"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"})
"""Calls by which the host waits for the GPU."""
END = "the end of a profiled step"
"""What waits from here on is the profiler."""
COMMUNICATION = "communication"
GLOO = "gloo:"
"""How torch names what gloo does."""
KINDS = (
    (COMMUNICATION, ("nccl", "gloo", "c10d::")),
    ("attention", ("flash", "fmha", "cudnn", "sdpa", "attention")),
    ("casts to float8", ("_float8", "_largest_of_columns")),
    ("optimizer", ("_adamw", "adam", "multi_tensor", "foreach")),
    ("norms", ("rms_norm", "layer_norm", "_sum_rows")),
    ("SwiGLU", ("swiglu", "silu")),
    ("RoPE", ("_split_rotate", "rotary")),
    ("loss", ("cross_entropy", "softmax", "nll")),
    ("embedding", ("_add_rows", "gather_kernel", "embedding", "radixsort")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "cublas", "xmma", "addmm", "::mm", "bmm", "scaled_mm")),
    ("copies and clearing", ("memcpy", "memset", "copy_", "::copy", "fillfunctor", "zero_")),
)
"""(kind, parts of a kernel's name in lower case); the first that fits takes it."""
OTHERS = "others"
LONGEST = 40
"""Most kernels that the table lists one by one."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """One kernel's run, or on a CPU one operator's."""

    name: str
    start: float
    """Microseconds."""
    end: float
    """Microseconds."""
    own: float
    """Microseconds, without what it calls."""


def kind_of(name: str) -> str:
    """The kind that a kernel counts in."""
    low = name.lower()
    return next((kind for kind, parts in KINDS if any(part in low for part in parts)), OTHERS)


def busy(spans: Sequence[Span]) -> float:
    """Microseconds in which at least one span runs."""
    total, last = 0.0, float("-inf")
    for span in sorted(spans, key=lambda each: each.start):
        total += max(0.0, span.end - max(span.start, last))
        last = max(last, span.end)
    return total


def lines(iterations: Sequence[Sequence[Span]], synchronizations: int, seconds: float) -> Iterator[str]:
    """The table of iterations that took `seconds` together: milliseconds of one, their mean."""
    spans, count = [span for each in iterations for span in each], len(iterations)
    if not spans:
        yield "no kernel was seen"
        return

    def mean(microseconds: float) -> float:
        return microseconds / 1e3 / count

    whole = sum(max(s.end for s in each) - min(s.start for s in each) for each in iterations if each)
    active = sum(busy(each) for each in iterations)
    computing = sum(busy([s for s in each if kind_of(s.name) != COMMUNICATION]) for each in iterations)
    yield f"{count} iteration(s) under the profiler, {seconds * 1e3 / count:,.1f} ms each"
    yield f"from the first kernel to the last: {mean(whole):,.1f} ms, idle {mean(whole - active):,.1f} ms"
    yield f"exposed communication: {mean(active - computing):,.1f} ms"
    yield f"host synchronizations: {synchronizations / count:g}"
    for title, key in (("kind", kind_of), ("kernel", lambda name: name)):
        found: dict[str, list[float]] = defaultdict(list)
        for span in spans:
            found[key(span.name)].append(span.own)
        yield f"\n{'ms':>10} {'runs':>9} {title}"
        for name, times in sorted(found.items(), key=lambda row: -sum(row[1]))[:LONGEST]:
            yield f"{mean(sum(times)):10.2f} {len(times) / count:9g} {name[:150]}"


class Profiler:
    """Profiles the training steps of iterations A to B, each by itself: what lies between them is not in it."""

    def __init__(self, config: LoopConfig, *, speaks: bool) -> None:
        """`speaks`: this rank is the one that is profiled."""
        self._asked, self._speaks = config.profile, speaks
        self._folder = Path(config.profile_dir or "")
        self._steps: dict[int, tuple[list[Any], float]] = {}
        """Of each iteration that was profiled: its events, and seconds."""

    def covers(self, iteration: int) -> bool:
        """Whether the iteration is profiled, on whichever rank."""
        return self._asked is not None and self._asked[0] <= iteration <= self._asked[1]

    @contextmanager
    def over(self, iteration: int) -> Iterator[None]:
        """Around the training step of an iteration. One that does not end is not reported."""
        if not (self._speaks and self.covers(iteration)):
            yield
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=100_000)
        _synchronize()
        begin = time.perf_counter()
        with torch.profiler.profile(activities=activities) as profile:
            yield
            with torch.profiler.record_function(END):
                _synchronize()
        seconds = time.perf_counter() - begin
        self._steps[iteration] = list(profile.events()), seconds
        with self._writing():
            profile.export_chrome_trace(str(self._folder / TRACE.format(iteration)))

    def close(self) -> None:
        """Write the table and the snapshot of memory; say where no iteration was reached, or nothing can be written."""
        if not self._speaks or self._asked is None:
            return
        if not self._steps:
            first, last = self._asked
            print(
                f"note: --profile {first}:{last}: nothing was profiled, as none of these iterations was trained now",
                file=sys.stderr,
            )
            return
        waits = sum(_waits(found) for found, _ in self._steps.values())
        spans = [_spans(found) for found, _ in self._steps.values()]
        text = "\n".join(lines(spans, waits, sum(seconds for _, seconds in self._steps.values())))
        numbers = min(self._steps), max(self._steps)
        with self._writing():
            (self._folder / TABLE.format(*numbers)).write_text(text + "\n", encoding="utf-8")
            if torch.cuda.is_available():
                torch.cuda.memory._dump_snapshot(str(self._folder / MEMORY.format(*numbers)))
                torch.cuda.memory._record_memory_history(enabled=None)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A profile that cannot be written does not end the run."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            print(f"warning: --profile-dir {self._folder}: not written: {error}", file=sys.stderr, flush=True)


def _waits(events: Sequence[Any]) -> int:
    """How often the host waited for the GPU in a step, without the waits of the profiler itself."""
    end = min((event.time_range.start for event in events if event.name == END), default=math.inf)
    return sum(event.name in SYNCHRONIZATIONS and event.time_range.start < end for event in events)


def _spans(events: Sequence[Any]) -> list[Span]:
    """What ran on the GPU; on a CPU every operator, and gloo's work in its own threads, of which waiting is a part."""
    on_gpu, device = torch.cuda.is_available(), torch.autograd.DeviceType.CUDA
    return [
        Span(
            name=event.name,
            start=event.time_range.start,
            end=event.time_range.end,
            own=event.time_range.elapsed_us() if on_gpu or event.name.startswith(GLOO) else event.self_cpu_time_total,
        )
        for event in events
        if event.name != END
        and (not on_gpu or (event.device_type == device and not getattr(event, "is_user_annotation", False)))
    ]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
