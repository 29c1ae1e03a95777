"""Rules of batch-size warm-up: a ramp that ends at the global batch, in steps that every layout can take.

Neighbours: `batch_sizes` has the sizes; `layout` judges the global batch itself.
"""

from __future__ import annotations

from tinyllama_mcore.config.nearest import nearest_multiples
from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import BatchConfig, RunConfig


def wrong_ramp(batch: BatchConfig) -> str | None:
    """Why the batch cannot grow so; None where it can, or does not grow."""
    if batch.rampup_batch_size is None:
        return None
    start, increment, samples = batch.rampup_batch_size
    given, full = f"--rampup-batch-size {start} {increment} {samples}", batch.global_batch_size
    if min(start, increment, samples) < 1:
        return f"{given}: START, INCREMENT and SAMPLES must be at least 1"
    if start >= full:
        return (
            f"{given}: START must be below --global-batch-size {full}, to which it grows; nearest: "
            f"{max(1, full - increment)}"
        )
    if (full - start) % increment:
        return (
            f"{given}: steps of {increment} do not lead from {start} to --global-batch-size {full}; nearest INCREMENT "
            f"that does: {nearest_divisor(full - start, increment)}"
        )
    return None


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that is nearest to `wanted`."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda divisor: abs(divisor - wanted))


def _unit(run: RunConfig) -> int:
    """Sequences that every size is a multiple of: one micro-batch of each rank, or as many as an interleaved group."""
    layout = run.layout
    groups = layout.pipeline_model_parallel_size if layout.virtual_pipeline_model_parallel_size > 1 else 1
    return run.batch.micro_batch_size * layout.data_parallel_size * groups


def _grows_in_units(run: RunConfig) -> bool:
    return all(size % _unit(run) == 0 for size in (run.batch.rampup_batch_size or ())[:2])


def _unit_message(run: RunConfig) -> str:
    start, increment, samples = run.batch.rampup_batch_size or (0, 0, 0)
    unit, layout = _unit(run), run.layout
    group = (
        f" x pipeline parallel {layout.pipeline_model_parallel_size}"
        if layout.virtual_pipeline_model_parallel_size > 1
        else ""
    )
    return (
        f"--rampup-batch-size {start} {increment} {samples}: START and INCREMENT must be multiples of {unit} = micro "
        f"batch {run.batch.micro_batch_size} x data parallel {layout.data_parallel_size}{group}; nearest: START "
        f"{nearest_multiples(start, unit)}, INCREMENT {nearest_multiples(increment, unit)}"
    )


RAMP_RULES = (
    Rule(
        name="the ramp ends at the global batch",
        about=About.LAYOUT,
        holds=lambda run: wrong_ramp(run.batch) is None,
        message=lambda run: str(wrong_ramp(run.batch)),
    ),
    Rule(
        name="micro batch x data parallel divides every size of the ramp",
        about=About.LAYOUT,
        holds=_grows_in_units,
        message=_unit_message,
    ),
)
