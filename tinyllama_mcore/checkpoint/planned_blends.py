"""Planned blends (`--data-path-from`) of a run that resumes: where they begin, and what has become of a plan.

A plan counts iterations; samples follow from the sizes of batches, which may have changed. A blend that has begun stays
where it began. One that is still to come begins where the checkpoint's run had it begin, or where its iteration does.
Neighbours: `resume` asks, `sampling.blend` draws.
"""

from __future__ import annotations

from dataclasses import replace

from tinyllama_mcore.checkpoint.manifest import Manifest
from tinyllama_mcore.config.data_config import LaterBlend
from tinyllama_mcore.config.schema import RunConfig


def replanned(run: RunConfig, manifest: Manifest) -> RunConfig:
    """The run with its later blends where they begin behind the checkpoint, and a note where a plan was left out."""
    later = tuple(replace(each, first_sample=_begin(each, run, manifest)) for each in run.data.later_blends)
    run = replace(run, data=replace(run.data, later_blends=later))
    left = [each for each in _of(manifest) if each.first_sample >= manifest.state.consumed_samples and each.iteration]
    if not left or later:
        return run
    note = (
        f"the checkpoint's run had planned another blend after iteration {left[0].iteration:,} (--data-path-from), and "
        "this command has none"
    )
    return run if note in run.notes else replace(run, notes=(*run.notes, note))


def _begin(later: LaterBlend, run: RunConfig, manifest: Manifest) -> int:
    """Number of its first sample."""
    if later.iteration is None:
        return later.first_sample
    state, sizes = manifest.state, run.batch.sizes
    known = {each.iteration: each.first_sample for each in _of(manifest)}
    begun = later.iteration < state.iteration
    if later.iteration in known and (begun or sizes == manifest.config.batch.sizes):
        return known[later.iteration]
    if begun:
        return min(later.first_sample, state.consumed_samples - 1)
    return sizes.samples_before(later.iteration - state.iteration, consumed=state.consumed_samples)


def hint(run: RunConfig, manifest: Manifest) -> str:
    """What may have been meant where the blend is not the checkpoint's, as a sentence; empty where nothing is known."""
    state = manifest.state
    early = [each.iteration for each in run.data.later_blends if each.iteration and each.iteration < state.iteration]
    begun = [each.iteration for each in _of(manifest) if each.iteration and each.iteration < state.iteration]
    if begun and begun != early:
        return f"That run changed its blend after iteration {begun[-1]:,}: repeat its --data-path-from. "
    if early and not begun:
        return (
            f"--data-path-from {early[-1]} would have begun before iteration {state.iteration:,}, at which the "
            f"checkpoint stands: give {state.iteration} or later. "
        )
    return ""


def _of(manifest: Manifest) -> tuple[LaterBlend, ...]:
    """What the checkpoint's run had planned; imported weights have no run."""
    return () if manifest.provenance.order is None else manifest.config.data.later_blends
