"""Whether a checkpoint is of this run: what must be equal, and what is told where it differs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllama_mcore.checkpoint.manifest import Manifest
from tinyllama_mcore.config import records
from tinyllama_mcore.config.schema import ConfigError, RunConfig
from tinyllama_mcore.data.blend import BlendPattern
from tinyllama_mcore.data.past import Drawn, Past

_NOT_THE_SHAPE = ("init_method",)
"""Fields of the model that say how a run began, not what its tensors are."""

_FILES = {"datasets": ".idx", "tokens": ".bin"}
"""What names the content of each dataset -> ending of the file that it is read from. Files may have moved."""

_BLEND = ("weights", "prefixes", *_FILES, "began", "drawn")
"""What an order of samples says of its blend; the rest are rules that no run changes."""


def refuse_other_model(folder: Path, manifest: Manifest, run: RunConfig) -> None:
    """ConfigError where the checkpoint is of another architecture, naming each size that differs."""
    saved, asked = manifest.run["model"], records.to_plain(run.model)
    asked = {key: value for key, value in asked.items() if key not in _NOT_THE_SHAPE}
    differing = [
        f"{key} is {saved.get(key)} there and {asked[key]} here" for key in asked if saved.get(key) != asked[key]
    ]
    if differing:
        raise ConfigError(
            f"checkpoint {folder} is of another model than recipe {run.recipe}: {'; '.join(differing)}. "
            "Give the recipe that it was trained with"
        )


def past(folder: Path, manifest: Manifest, order: Mapping[str, Any], *, may_change: bool = False) -> Past:
    """What was drawn before the blend of a run that goes on from a checkpoint.

    Args:
        folder: of the checkpoint.
        manifest: of the checkpoint.
        order: all that the order of samples depends on here. Imported weights have a tokenizer at most.
        may_change: whether datasets and weights may be others than there; a new blend then begins at the checkpoint.

    Raises:
        ConfigError: the next sample would not be the one that follows in the saved run, or in what may not change.
    """
    saved = manifest.provenance.get("order")
    if saved is None:
        own = manifest.provenance.get("tokenizer")
        if own not in (None, order["tokenizer"]) and not may_change:
            raise ConfigError(
                f"checkpoint {folder} was imported with the tokenizer of sha256 {own[:12]}, and the data are made with "
                f"that of {order['tokenizer'][:12]}: ids would mean other tokens. Give data made with the model's own, "
                "or --allow-data-change where the new one means the same by every id that both have"
            )
        return Past()
    rules = [
        f"{key} is {saved.get(key)} there and {order[key]} here"
        for key in order
        if key not in _BLEND and saved.get(key) != order[key]
    ]
    blend = _other_blend(saved, order)
    if rules or (blend and not may_change):
        change = "" if rules else ", change it from here on with --allow-data-change,"
        raise ConfigError(
            f"checkpoint {folder} was trained on samples in another order: {'; '.join(blend + rules)}. "
            f"Go on with the same data{change} or begin a new run with --no-load"
        )
    return _past_until(manifest.state.consumed_samples, saved) if blend else Past.read(saved)


def _other_blend(saved: Mapping[str, Any], order: Mapping[str, Any]) -> list[str]:
    """How the datasets and their weights differ, in words."""
    differing = []
    if len(saved["datasets"]) != len(order["datasets"]):
        return [f"--data-path names {_listed(order)}, the checkpoint has {_listed(saved)}"]
    if saved["weights"] != order["weights"]:
        differing.append(f"weights is {saved['weights']} there and {order['weights']} here")
    for number, (there, here) in enumerate(zip(saved["prefixes"], order["prefixes"], strict=True)):
        changed = [ending for key, ending in _FILES.items() if saved[key][number] != order[key][number]]
        if changed and os.path.realpath(there) != os.path.realpath(here):
            differing.append(f"--data-path names another dataset, {here}, where the checkpoint has {there}")
        else:
            differing += [f"{here}{ending} is not the file that it was" for ending in changed]
    return differing


def _listed(order: Mapping[str, Any]) -> str:
    """A blend in words."""
    blend = zip(order["weights"], order["prefixes"], strict=True)
    return " ".join(f"{weight:g} {prefix}" for weight, prefix in blend)


def _past_until(samples: int, saved: Mapping[str, Any]) -> Past:
    """What a run had drawn when it had so many samples, by its order of samples."""
    before = Past.read(saved)
    counts = BlendPattern(tuple(saved["weights"])).consumed(samples - before.start)
    columns = zip(saved["prefixes"], saved["datasets"], saved["tokens"], counts, strict=True)
    return before.then(
        samples,
        [
            Drawn(prefix=prefix, fingerprint=dataset, token_sample=tokens, samples=count)
            for prefix, dataset, tokens, count in columns
        ],
    )
