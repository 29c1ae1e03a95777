"""`--log-straggler`: seconds in which this rank computes, without those in which it waits for another one.

Ranks wait for each other in every collective, so the duration of a step is the same on all of them, and does not say
which one is slow. What can be told apart is what lies between two waits. On a GPU its ends are events of the stream,
which are read when they are known to be over: nothing waits for them. Without a GPU computing is what the host does.
Neighbours: `engine.base` says what is measured, `model.fused` and `model.context` where a rank waits within a layer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class OwnTime:
    """Adds up stretches of a rank's own time, over passes of one kind."""

    def __init__(self, device: torch.device) -> None:
        """`device`: where the passes are computed."""
        self._on_gpu = device.type == "cuda"
        self._begun: Any = None
        """Where the stretch began that is not over; None between them."""
        self._stretches: deque[tuple[Any, Any, bool]] = deque()
        """Begin, end, and whether a pass ends with it."""
        self._idle: list[Any] = []
        """Events that can be recorded again."""

    def begin(self) -> None:
        """A pass begins."""
        self._begun = self._now()

    def end(self) -> None:
        """The pass is over."""
        self._stretches.append((self._begun, self._now(), True))
        self._begun = None

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Around a pass."""
        self.begin()
        yield
        self.end()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for other ranks, within a pass; outside of one nothing is measured."""
        if self._begun is None:
            yield
            return
        self._stretches.append((self._begun, self._now(), False))
        yield
        self._begun = self._now()

    def read(self) -> tuple[float, int]:
        """Seconds and passes that are over and were not read before. Does not wait: what is not over is read later."""
        seconds, passes = 0.0, 0
        while self._stretches and (not self._on_gpu or self._stretches[0][1].query()):
            begin, end, is_last = self._stretches.popleft()
            seconds += begin.elapsed_time(end) / 1e3 if self._on_gpu else end - begin
            passes += is_last
            if self._on_gpu:
                self._idle += (begin, end)
        return seconds, passes

    def _now(self) -> Any:  # noqa: ANN401  an event of the current stream, or a time of the host
        if not self._on_gpu:
            return time.perf_counter()
        event = self._idle.pop() if self._idle else torch.cuda.Event(enable_timing=True)
        event.record()
        return event
