"""`--profile A:B`: where the time of some iterations goes: a table by kind, torch's trace, and a snapshot of memory.

Only the rank that speaks for the job is profiled. Under the profiler the host is slower, so idle time is an upper bound
where the host is the limit, and the throughput of these iterations is not the run's. Neighbour: `loop` says when.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinyllama_mcore.config.schema import LoopConfig

TABLE, TRACE, MEMORY = "table.txt", "trace.json.gz", "memory.pickle"
"""What is written: the table; torch.profiler's trace, for a browser's Perfetto; torch.cuda.memory's snapshot."""
SYNCHRONIZATIONS = frozenset({"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"})
"""Calls by which the host waits for the GPU."""
COMMUNICATION = "communication"
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
"""Kernels that are told one by one."""


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


def lines(spans: Sequence[Span], synchronizations: int, seconds: float, iterations: int) -> Iterator[str]:
    """The table: milliseconds of an iteration, the mean of so many that took `seconds` together."""
    if not spans:
        yield "no kernel was seen"
        return

    def each(microseconds: float) -> float:
        return microseconds / 1e3 / iterations

    whole = max(span.end for span in spans) - min(span.start for span in spans)
    computing = busy([span for span in spans if kind_of(span.name) != COMMUNICATION])
    yield f"{iterations} iteration(s) under the profiler, {seconds * 1e3 / iterations:,.1f} ms each"
    yield f"from the first kernel to the last: {each(whole):,.1f} ms, idle {each(whole - busy(spans)):,.1f} ms"
    yield f"communication that nothing else hides: {each(busy(spans) - computing):,.1f} ms"
    yield f"host synchronizations: {synchronizations / iterations:g}"
    for title, key in (("kind", kind_of), ("kernel", lambda name: name)):
        found: dict[str, list[float]] = defaultdict(list)
        for span in spans:
            found[key(span.name)].append(span.own)
        yield f"\n{'ms':>10} {'runs':>9} {title}"
        for name, times in sorted(found.items(), key=lambda row: -sum(row[1]))[:LONGEST]:
            yield f"{each(sum(times)):10.2f} {len(times) / iterations:9g} {name[:150]}"


class Profiler:
    """Profiles iterations A to B of a run, on one rank."""

    def __init__(self, config: LoopConfig, *, speaks: bool) -> None:
        """`speaks`: this rank is the one that is profiled."""
        self._first, self._last = config.profile if config.profile is not None and speaks else (0, 0)
        self._folder = Path(config.profile_dir or "")
        self._running: Any = None
        self._iterations, self._begun = 0, 0.0

    @contextmanager
    def over(self, iteration: int) -> Iterator[None]:
        """Around the training step of an iteration."""
        if self._first <= iteration <= self._last and self._running is None:
            self._begin()
        yield
        if self._running is not None:
            self._iterations += 1
            if iteration >= self._last:
                self.close()

    def _begin(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=100_000)
        _synchronize()
        self._begun = time.perf_counter()
        self._running = torch.profiler.profile(activities=activities, acc_events=True)
        self._running.start()

    def close(self) -> None:
        """Write what was profiled, where a profile is under way; a run may leave before its last iteration."""
        if self._running is None:
            return
        _synchronize()
        seconds, profile, self._running = time.perf_counter() - self._begun, self._running, None
        profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(self._folder / TRACE))
        events = list(profile.events())
        waits = sum(event.name in SYNCHRONIZATIONS for event in events)
        text = "\n".join(lines(_spans(events), waits, seconds, max(1, self._iterations)))
        (self._folder / TABLE).write_text(text + "\n", encoding="utf-8")
        if torch.cuda.is_available():
            torch.cuda.memory._dump_snapshot(str(self._folder / MEMORY))
            torch.cuda.memory._record_memory_history(enabled=None)


def _spans(events: Sequence[Any]) -> list[Span]:
    """What ran on the GPU; on a CPU every operator."""
    on_gpu, device = torch.cuda.is_available(), torch.autograd.DeviceType.CUDA
    return [
        Span(
            name=event.name,
            start=event.time_range.start,
            end=event.time_range.end,
            own=event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total,
        )
        for event in events
        if not on_gpu or (event.device_type == device and not getattr(event, "is_user_annotation", False))
    ]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
