"""Runs the training script and profiles one update of it: kernels by time, idle time, host synchronizations.

`torchrun -m tinyllama_mcore.benchmarking.profiled UPDATE FILE examples/pretrain_tinyllama.py FLAGS`. The script is run
as it is; only the engines' `train_step` is wrapped, and only rank 0 is profiled. Under the profiler the host is slower,
so idle time is an upper bound where the host is the limit.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinyllama_mcore.benchmarking.workload import synchronize
from tinyllama_mcore.engine.deepspeed_engine import DeepSpeedEngine
from tinyllama_mcore.engine.fsdp_engine import FsdpEngine
from tinyllama_mcore.engine.protocol import StepResult
from tinyllama_mcore.parallel import launch

SYNCHRONIZATIONS = frozenset({"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"})
"""Calls by which the host waits for the GPU."""
GROUPS = (
    ("communication", ("nccl",)),
    ("attention", ("flash", "fmha", "cudnn", "sdpa", "attention")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "cublas", "xmma", "addmm", "::mm", "bmm")),
    ("copies", ("memcpy", "memset", "copy_", "::copy")),
    ("optimizer", ("adam", "multi_tensor", "foreach")),
    ("reductions", ("reduce", "norm")),
    ("loss", ("cross_entropy", "softmax", "nll")),
    ("pointwise", ("elementwise", "triton", "swiglu", "rotate", "vectorized")),
)
"""(group, parts of a kernel's name in lower case); the first that fits takes it."""
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


def busy(spans: list[Span]) -> float:
    """Microseconds in which at least one span runs."""
    total, last = 0.0, float("-inf")
    for span in sorted(spans, key=lambda each: each.start):
        total += max(0.0, span.end - max(span.start, last))
        last = max(last, span.end)
    return total


def group_of(name: str) -> str:
    """The group that a kernel counts in."""
    low = name.lower()
    return next((group for group, parts in GROUPS if any(part in low for part in parts)), "others")


def lines(spans: list[Span], synchronizations: int, seconds: float) -> Iterator[str]:
    """The profile as text."""
    if not spans:
        yield "no kernel was seen"
        return
    whole = max(span.end for span in spans) - min(span.start for span in spans)
    yield f"one update under the profiler: {seconds * 1e3:,.1f} ms"
    yield f"from the first kernel to the last: {whole / 1e3:,.1f} ms, idle {(whole - busy(spans)) / 1e3:,.1f} ms"
    yield f"host synchronizations: {synchronizations}"
    for title, key in (("group", group_of), ("kernel", lambda name: name)):
        found: dict[str, list[float]] = defaultdict(list)
        for span in spans:
            found[key(span.name)].append(span.own)
        yield f"\n{'ms':>10} {'runs':>7} {title}"
        for name, times in sorted(found.items(), key=lambda each: -sum(each[1]))[:LONGEST]:
            yield f"{sum(times) / 1e3:10.2f} {len(times):7d} {name[:150]}"


def spans_of(events: list[Any]) -> list[Span]:
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


def wrap(engine: type, update: int, output: Path) -> None:
    """Let an engine's step number `update`, from 1, write its profile to `output`."""
    step, count = engine.train_step, iter(range(1, sys.maxsize))  # type: ignore[attr-defined]

    def train_step(self: object, *args: Any, **kwargs: Any) -> StepResult:  # noqa: ANN401  as the engine's
        if next(count) != update:
            return step(self, *args, **kwargs)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        synchronize(device)
        begin = time.perf_counter()
        with torch.profiler.profile(activities=activities) as profile:
            result = step(self, *args, **kwargs)
            synchronize(device)
        seconds = time.perf_counter() - begin
        events = list(profile.events())
        waits = sum(event.name in SYNCHRONIZATIONS for event in events)
        output.write_text("\n".join(lines(spans_of(events), waits, seconds)) + "\n", encoding="utf-8")
        return result

    engine.train_step = train_step  # type: ignore[attr-defined]


def main(argv: list[str]) -> None:
    """Update, output file, script, and the script's own arguments."""
    update, output, script = int(argv[0]), Path(argv[1]), argv[2]
    if launch.read().rank == 0:
        for engine in (DeepSpeedEngine, FsdpEngine):
            wrap(engine, update, output)
    sys.argv = argv[2:]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
