"""Rules that ask for the device. They come last, as asking imports torch. Neighbour: `kernels` judges the run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tinyllama_mcore.config import exchange, swiglu
from tinyllama_mcore.config.rules.kernels import GPU_KERNELS
from tinyllama_mcore.config.rules.rule import About, Rule


def _yes() -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Device:
    """What rules ask of this process's device; each is called only where a rule needs to know."""

    has_gpu: Callable[[], bool]
    """Whether there is a GPU. The others are asked only where there is."""
    has_float8: Callable[[], bool] = _yes
    """Whether it multiplies in float8."""
    is_hopper: Callable[[], bool] = _yes
    sees_peer: Callable[[], bool] = _yes
    """Whether it and its neighbour see each other's memory."""


def device_rules(device: Device) -> Iterator[Rule]:
    """The rows, for one device."""
    yield _attention(device)
    yield _float8(device)
    yield _graph(device)
    yield _graph_of_two(device)
    yield _quack(device)
    yield _exchange(device)
    yield _documents(device)


def _attention(device: Device) -> Rule:
    return Rule(
        name="flash and cudnn attention need a GPU",
        about=About.KERNELS,
        holds=lambda run: run.attention_backend not in GPU_KERNELS or device.has_gpu(),
        message=lambda run: (
            f"--attention-backend {run.attention_backend} needs a GPU, and there is none here; use sdpa or auto"
        ),
    )


def _float8(device: Device) -> Rule:
    return Rule(
        name="float8 needs an Ada or Hopper GPU",
        about=About.KERNELS,
        holds=lambda run: run.float8.recipe is None or not device.has_gpu() or device.has_float8(),
        message=lambda run: (
            f"--fp8-recipe {run.float8.recipe} needs a GPU that multiplies in float8 (Ada, Hopper or later), and "
            "this one does not; leave --fp8-recipe out"
        ),
    )


def _graph(device: Device) -> Rule:
    return Rule(
        name="a CUDA graph needs a GPU",
        about=About.KERNELS,
        holds=lambda run: not run.cuda_graph or device.has_gpu(),
        message=lambda _: "--cuda-graph needs a GPU, and there is none here; leave it out",
    )


def _graph_of_two(device: Device) -> Rule:
    return Rule(
        name="a CUDA graph of tensor-parallel passes needs GPUs that see each other's memory",
        about=About.KERNELS,
        holds=lambda run: (
            not run.cuda_graph
            or run.layout.tensor_model_parallel_size == 1
            or not device.has_gpu()
            or device.sees_peer()
        ),
        message=lambda _: (
            "--cuda-graph with tensor parallel 2 needs two GPUs of one host that see each other's memory: elsewhere "
            "their sums are NCCL's, which a graph must not hold; leave it out"
        ),
    )


def _quack(device: Device) -> Rule:
    def hopper() -> bool:
        return device.has_gpu() and device.is_hopper()

    return Rule(
        name="quack computes SwiGLU of fused layers in bf16 on a Hopper GPU",
        about=About.KERNELS,
        holds=lambda run: run.swiglu_backend != "quack" or swiglu.obstacle(run, hopper) is None,
        message=lambda run: f"--swiglu-backend quack: {swiglu.obstacle(run, hopper)}; use auto, or separate",
    )


def _exchange(device: Device) -> Rule:
    def peer() -> bool:
        return device.has_gpu() and device.sees_peer()

    return Rule(
        name="sums of tensor-parallel GPUs beside products are of two that see each other's memory",
        about=About.KERNELS,
        holds=lambda run: not run.tp_comm_overlap or exchange.obstacle(run, peer) is None,
        message=lambda run: f"--tp-comm-overlap {exchange.obstacle(run, peer)}; leave it out",
    )


def _documents(device: Device) -> Rule:
    # model/documents.py
    return Rule(
        name="document masking in bf16 on a GPU is flash attention",
        about=About.KERNELS,
        holds=lambda run: (
            not run.data.inter_document_masking
            or run.attention_backend in ("auto", "flash")
            or run.sharding.precision != "bf16"
            or not device.has_gpu()
        ),
        message=lambda run: (
            f"--attention-backend {run.attention_backend} does nothing with --inter-document-masking in bf16 on a "
            "GPU, where documents are kept apart by a variable-length flash kernel; use flash or auto"
        ),
    )
