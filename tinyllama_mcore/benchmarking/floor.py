"""The floor: the matrix products and the causal attention of a training step alone, one after the other.

No step in this precision can be faster on this GPU with these kernels: norms, rotary positions, SwiGLU, the loss, the
optimizer and every copy are left out. `python -m tinyllama_mcore.benchmarking.floor WORKLOAD` prints a Measurement.
Shapes: m tokens of a micro-batch, h hidden, n query heads, g query groups, d head dim, s sequence, b micro-batch.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinyllama_mcore.benchmarking.workload import FP32, MIXED, Measurement, Workload, median_and_spread
from tinyllama_mcore.config import records

Work = tuple[str, Callable[[], object]]
"""The name of a part, and what does it."""
BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
"""Attention kernels of torch that may be the fastest on a GPU."""
REPEATS = 3
"""Passes whose median is a part's time."""


class Linear:
    """A linear layer with random numbers: [m, inputs] -> [m, outputs]."""

    def __init__(self, name: str, shape: tuple[int, int, int], options: dict[str, Any]) -> None:
        """`shape` is (m, inputs, outputs); `options` are torch's device and dtype."""
        tokens, inputs, outputs = shape
        self.name = name
        self.x, self.dx = (torch.randn(tokens, inputs, **options) for _ in range(2))
        self.y, self.dy = (torch.randn(tokens, outputs, **options) for _ in range(2))
        self.weight, self.dweight = (torch.randn(outputs, inputs, **options) * 0.02 for _ in range(2))

    def forward(self) -> Work:
        """The product of the forward pass."""
        return f"{self.name} forward", lambda: torch.mm(self.x, self.weight.t(), out=self.y)

    def backward(self) -> list[Work]:
        """The products that give the input's and the weight's gradient."""
        return [
            (f"{self.name} dgrad", lambda: torch.mm(self.dy, self.weight, out=self.dx)),
            (f"{self.name} wgrad", lambda: torch.mm(self.dy.t(), self.x, out=self.dweight)),
        ]


class Attention:
    """Causal attention of a micro-batch with random numbers, by one of torch's kernels."""

    def __init__(self, workload: Workload, backend: SDPBackend | None, options: dict[str, Any]) -> None:
        """`backend` None leaves the choice to torch."""
        model = workload.model

        def heads(count: int) -> torch.Tensor:  # [b, count, s, d]
            shape = (workload.micro_batch_size, count, workload.seq_length, model.head_dim)
            return torch.randn(*shape, **options)

        self._inputs = [heads(model.num_attention_heads), *(heads(model.num_query_groups) for _ in range(2))]
        for tensor in self._inputs:
            tensor.requires_grad_()
        self._backend, self._gradient = backend, heads(model.num_attention_heads)
        self._output = self._gradient

    def forward(self) -> None:
        """Keeps what the backward pass needs."""
        choice = contextlib.nullcontext() if self._backend is None else sdpa_kernel([self._backend])
        query, key, value = self._inputs
        with choice:
            self._output = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
            )

    def backward(self) -> None:
        """The gradients of query, key and value."""
        torch.autograd.grad(self._output, self._inputs, self._gradient, retain_graph=True)


def micro_batch(workload: Workload, attention: Attention, options: dict[str, Any]) -> list[Work]:
    """The products of one micro-batch in the order of a real one. Layers share their buffers."""
    model, tokens = workload.model, workload.micro_batch_size * workload.seq_length
    hidden, width = model.hidden_size, model.num_attention_heads * model.head_dim
    qkv = width + 2 * model.num_query_groups * model.head_dim
    made = {
        name: Linear(name, (tokens, inputs, outputs), options)
        for name, inputs, outputs in (
            ("qkv", hidden, qkv),
            ("proj", width, hidden),
            ("gate and up", hidden, 2 * model.ffn_hidden_size),
            ("down", model.ffn_hidden_size, hidden),
            ("head", hidden, workload.vocab_size),
        )
    }
    forward = [
        made["qkv"].forward(),
        ("attention forward", attention.forward),
        *(made[name].forward() for name in ("proj", "gate and up", "down")),
    ]
    backward = [
        *itertools.chain.from_iterable(made[name].backward() for name in ("down", "gate and up", "proj")),
        ("attention backward", attention.backward),
        *made["qkv"].backward(),
    ]
    head = [made["head"].forward(), *made["head"].backward()]
    return [*forward * model.num_layers, *head, *backward * model.num_layers]


def seconds(works: list[Work], *, on_gpu: bool) -> float:
    """How long all of them take, one after the other: by CUDA events on a GPU."""
    if not on_gpu:
        begin = time.perf_counter()
        for _, run in works:
            run()
        return time.perf_counter() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _, run in works:
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def by_part(works: list[Work], *, on_gpu: bool) -> dict[str, float]:
    """Part -> seconds in one pass over `works`."""
    found: dict[str, float] = defaultdict(float)
    if not on_gpu:
        for work in works:
            found[work[0]] += seconds([work], on_gpu=False)
        return dict(found)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(works) + 1)]
    events[0].record()
    for (_, run), after in zip(works, events[1:], strict=True):
        run()
        after.record()
    torch.cuda.synchronize()
    for (part, _), (before, after) in zip(works, itertools.pairwise(events), strict=True):
        found[part] += before.elapsed_time(after) / 1e3
    return dict(found)


def fastest_attention(workload: Workload, options: dict[str, Any]) -> tuple[str, Attention]:
    """The kernel that is fastest forward and backward here, by name; torch's own choice on a CPU."""
    if not workload.on_gpu:
        return "torch's", Attention(workload, None, options)

    def tried() -> Iterator[tuple[float, str, Attention]]:
        for name, backend in BACKENDS.items():
            attention = Attention(workload, backend, options)
            works: list[Work] = [("", attention.forward), ("", attention.backward)] * 10
            with contextlib.suppress(RuntimeError):  # no such kernel for this GPU or these shapes
                seconds(works, on_gpu=True)
                yield seconds(works, on_gpu=True), name, attention

    _, name, attention = min(tried(), key=lambda each: each[0])
    return name, attention


def measure(workload: Workload) -> Measurement:
    """The floor of this workload on this machine."""
    torch.manual_seed(0)
    on_gpu = workload.on_gpu
    options: dict[str, Any] = {
        "device": workload.device,
        "dtype": torch.bfloat16 if on_gpu else torch.float32,
    }
    kernel, attention = fastest_attention(workload, options)
    works = micro_batch(workload, attention, options)
    for _ in range(workload.warmup * workload.accumulation):
        seconds(works, on_gpu=on_gpu)
    updates = [seconds(works * workload.accumulation, on_gpu=on_gpu) for _ in range(workload.updates)]
    passes = [by_part(works, on_gpu=on_gpu) for _ in range(REPEATS)]
    median, spread = median_and_spread(updates)
    return Measurement(
        name=f"floor: matrix products and causal attention ({kernel} kernel) alone",
        kind="floor",
        precision=MIXED if on_gpu else FP32,
        tokens_per_s=workload.tokens_per_update / median,
        spread=spread,
        parts_ms={
            part: statistics.median(each[part] for each in passes) * workload.accumulation * 1e3 for part in passes[0]
        },
    )


def main(argv: list[str]) -> int:
    """Measure the workload that the one argument spells."""
    workload = records.from_plain(Workload, json.loads(argv[0]), "workload")
    print(json.dumps(records.to_plain(measure(workload))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
