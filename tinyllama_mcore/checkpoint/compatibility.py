"""Whether a checkpoint is of this run: what must be equal, and what is told where it differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllama_mcore.checkpoint.manifest import Manifest
from tinyllama_mcore.config import records
from tinyllama_mcore.config.schema import ConfigError, RunConfig

_NOT_THE_SHAPE = ("init_method",)
"""Fields of the model that say how a run began, not what its tensors are."""

_FILES = {"datasets": ".idx", "tokens": ".bin"}
"""What names the content of each dataset -> ending of the file that it is read from. Files may have moved."""


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


def refuse_other_data(folder: Path, manifest: Manifest, order: Mapping[str, Any]) -> None:
    """ConfigError where the next sample would not be the one that follows in the saved run.

    `order` is all that the order of samples depends on. Imported weights have no order: nothing is compared.
    """
    saved = manifest.provenance.get("order")
    if saved is None:
        return
    differing = [
        f"{key} is {saved.get(key)} there and {order[key]} here"
        for key in order
        if key not in ("prefixes", *_FILES) and saved.get(key) != order[key]
    ]
    if len(saved["datasets"]) == len(order["datasets"]):  # another number shows in the weights
        differing += [
            f"{prefix}{ending} is not the file that it was"
            for key, ending in _FILES.items()
            for prefix, there, here in zip(order["prefixes"], saved[key], order[key], strict=True)
            if there != here
        ]
    if differing:
        raise ConfigError(
            f"checkpoint {folder} was trained on samples in another order: {'; '.join(differing)}. "
            "Go on with the same data, or begin a new run with --no-load"
        )
