"""Whether a run may resume from a checkpoint: what must be equal, and the message where it differs."""

from __future__ import annotations

import os
from dataclasses import replace

from tinyllama_mcore.checkpoint.manifest import Checkpoint
from tinyllama_mcore.config import records
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.sampling.pattern import BlendPattern
from tinyllama_mcore.sampling.sample_order import BlendHistory, Drawn, SampleOrder

_NOT_THE_SHAPE = ("init_method",)
"""Fields of the model that say how a run began, not what its tensors are."""

_FILES = {"fingerprint": ".idx", "token_sample": ".bin"}
"""What names the content of a dataset -> ending of the file that it is read from. Files may have moved."""


def refuse_other_model(checkpoint: Checkpoint, run: RunConfig) -> None:
    """ConfigError where the checkpoint is of another architecture, naming each size that differs."""
    models = checkpoint.manifest.config.model, run.model
    saved, asked = (records.to_plain(replace(model, kv_channels=model.head_dim)) for model in models)
    differing = [
        f"{key} is {saved[key]} in the checkpoint and {asked[key]} in this command"
        for key in asked
        if key not in _NOT_THE_SHAPE and saved[key] != asked[key]
    ]
    if differing:
        raise ConfigError(
            f"checkpoint {checkpoint.folder} is of another model than recipe {run.recipe}: {'; '.join(differing)}. "
            "Give the recipe that it was trained with, or leave --recipe out"
        )


def blend_history(
    checkpoint: Checkpoint, order: SampleOrder, *, may_change: bool = False, hint: str = ""
) -> BlendHistory:
    """What was drawn before the blend of a run that resumes from a checkpoint.

    Args:
        checkpoint: it.
        order: of the run that resumes; its history is not looked at.
        may_change: whether datasets and weights may be others than there; a new blend then begins at the checkpoint.
        hint: a sentence on what may have been meant, for the message.

    Raises:
        ConfigError: the next sample would not be the one that follows in the saved run, or in what may not change.
    """
    folder, manifest = checkpoint
    saved = manifest.provenance.order
    if saved is None:
        own = manifest.provenance.tokenizer_sha256
        if own not in (None, order.tokenizer_sha256) and not may_change:
            raise ConfigError(
                f"checkpoint {folder} was imported with the tokenizer of sha256 {own[:12]}, and the data were made "
                f"with that of {order.tokenizer_sha256[:12]}: the same id may mean another token. Give data made with "
                "the model's tokenizer, or --allow-data-change if the two agree on every id that both have"
            )
        return BlendHistory()
    rules, blend = order.other_rules(saved), _other_blend(saved, order)
    if rules or (blend and not may_change):
        change = "" if rules else ", change the data from here on with --allow-data-change"
        raise ConfigError(
            f"checkpoint {folder} was trained on samples in another order: {'; '.join(blend + rules)}. "
            f"{hint}Give the checkpoint's values{change}, or start a new run with --no-load"
        )
    return _history_until(manifest.state.consumed_samples, saved) if blend else saved.history


def _other_blend(saved: SampleOrder, order: SampleOrder) -> list[str]:
    """How the datasets and their weights differ, in words."""
    differing = []
    if len(saved.datasets) != len(order.datasets):
        return [f"--data-path names {_listed(order)}, the checkpoint has {_listed(saved)}"]
    if saved.weights != order.weights:
        differing.append(
            f"blend weights are {list(saved.weights)} in the checkpoint and {list(order.weights)} in this command"
        )
    for there, here in zip(saved.datasets, order.datasets, strict=True):
        changed = [ending for field, ending in _FILES.items() if getattr(there, field) != getattr(here, field)]
        if changed and os.path.realpath(there.prefix) != os.path.realpath(here.prefix):
            named = f"--data-path names another dataset, {here.prefix}, where the checkpoint has {there.prefix}"
            differing.append(named)
        else:
            differing += [f"{here.prefix}{ending} has changed since the checkpoint" for ending in changed]
    return differing


def _listed(order: SampleOrder) -> str:
    """A blend in words."""
    blend = zip(order.weights, order.datasets, strict=True)
    return " ".join(f"{weight:g} {dataset.prefix}" for weight, dataset in blend)


def _history_until(samples: int, order: SampleOrder) -> BlendHistory:
    """What a run of this order had drawn after so many samples."""
    counts = BlendPattern(order.weights).consumed(samples - order.history.start)
    drawn = [Drawn(**vars(dataset), samples=count) for dataset, count in zip(order.datasets, counts, strict=True)]
    return order.history.extended(samples, drawn)
