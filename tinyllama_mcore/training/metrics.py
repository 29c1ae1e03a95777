"""What is known about one iteration: a frozen record, and the arithmetic that makes rates of a duration.

Neighbours: the loop measures, `loggers` write, `model.flops` knows the cost of a token and the peak of a device.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.model.flops import FlopsPerToken, dense_bf16_peak, flops_per_token
from tinyllama_mcore.training.stragglers import Straggler


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What the loop sees of one iteration."""

    iteration: int
    """Iterations done so far, this one included; those whose update was skipped count."""
    global_batch_size: int
    """Sequences of this iteration, over the whole job."""
    consumed_samples: int
    """Sequences that the run has seen so far, over the whole job."""
    consumed_by_dataset: Mapping[str, int] = field(default_factory=dict)
    """The same of each dataset, by prefix."""
    lm_loss: float
    """Mean cross entropy in nats a token, over all ranks and micro-batches."""
    grad_norm: float
    """Global L2 norm of the gradient before clipping; NaN where the update was skipped for its loss."""
    lr: float
    """Learning rate of this iteration."""
    iteration_time_s: float
    """Wall-clock seconds."""
    time: float = 0.0
    """When it was done, in seconds since 1970."""
    data_wait_s: float = 0.0
    """Of `iteration_time_s`: seconds that the rank which waited longest waited for its batch."""
    peak_memory_gib: float = 0.0
    """Most memory that any rank has held so far, in GiB: allocated on its GPU, or resident where there is none."""
    skipped: bool = False
    """Whether the update was skipped."""
    skip_reason: str | None = None
    """Why, in words."""
    rollbacks: int = 0
    """Times that the run has rolled back to an earlier checkpoint."""
    grad_norm_by_group: Mapping[str, float] | None = None
    """`grad_norm` of each part of the model, whose squares add up to its square (`engine.group_norms`); None where it
    was not asked for."""
    straggler: Straggler | None = None
    """Which rank is the slowest; None where that was not asked for."""


@dataclass(frozen=True, kw_only=True)
class StepRecord(StepOutcome):
    """One line of the metrics file."""

    consumed_tokens: int
    """Tokens that the run has seen so far, over the whole job."""
    consumed_tokens_by_dataset: Mapping[str, int]
    """The same of each dataset, by prefix."""
    tokens_per_s_per_gpu: float
    """Tokens a second of one process."""
    tflops_per_gpu: float
    """1e12 floating-point operations a second of one process, counting full attention."""
    mfu: float | None
    """`tflops_per_gpu` over the device's dense bf16 peak, from 0 to 1; None where no peak is known."""
    tflops_per_gpu_causal: float
    """As `tflops_per_gpu`, counting causal attention."""
    mfu_causal: float | None
    """As `mfu`, counting causal attention."""


ASKED_FOR = ("grad_norm_by_group", "straggler")
"""Fields that flags ask for, at each `--log-interval`: where they are None, the metrics file leaves them out."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What an evaluation found."""

    loss: float
    """Mean cross entropy in nats a token."""
    by_dataset: Mapping[str, float] = field(default_factory=dict)
    """The same of each dataset's sequences, by prefix, where samples come from several."""
    seconds: float = 0.0
    """Wall-clock seconds that it took."""


def perplexity(loss: float) -> float:
    """E to a loss in nats a token; infinity where that is no number that anybody reads."""
    return math.exp(loss) if not loss >= 100 else math.inf


@dataclass(frozen=True, kw_only=True)
class Meter:
    """What turns the duration of a step into rates: constant over a run."""

    seq_length: int
    """Tokens in one sample."""
    world_size: int
    """Processes in the job."""
    flops: FlopsPerToken
    """Cost of one token."""
    device_name: str | None
    """What the driver calls the accelerator; None on a CPU."""

    @property
    def peak(self) -> float | None:
        """Dense bf16 FLOP/s of the device, or None where no figure is known."""
        return dense_bf16_peak(self.device_name)


def meter_for(run: RunConfig) -> Meter:
    """The meter of this run on this process's device."""
    return Meter(
        seq_length=run.batch.seq_length,
        world_size=run.layout.world_size,
        flops=flops_per_token(run.model, run.batch.seq_length),
        device_name=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def step_record(meter: Meter, outcome: StepOutcome) -> StepRecord:
    """The outcome of a step with every figure that follows from it."""
    tokens = outcome.global_batch_size * meter.seq_length
    tokens_per_s = tokens / outcome.iteration_time_s / meter.world_size
    full, causal = (tokens_per_s * cost for cost in (meter.flops.full_attention, meter.flops.causal_attention))
    return StepRecord(
        **vars(outcome),
        consumed_tokens=outcome.consumed_samples * meter.seq_length,
        consumed_tokens_by_dataset={p: n * meter.seq_length for p, n in outcome.consumed_by_dataset.items()},
        tokens_per_s_per_gpu=tokens_per_s,
        tflops_per_gpu=full / 1e12,
        mfu=full / meter.peak if meter.peak else None,
        tflops_per_gpu_causal=causal / 1e12,
        mfu_causal=causal / meter.peak if meter.peak else None,
    )


def peak_memory_gib() -> float:
    """Most memory this process has held so far: allocated on the GPU, or resident where there is none. In GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
