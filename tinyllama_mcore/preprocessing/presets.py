"""The two datasets of the original run as rows: the files of each split, the field that holds the text, excluded sets.

After jzhang38/TinyLlama, scripts/prepare_*.py, and the datasets as they are published.
Neighbours: `preprocess` takes these values; flags override them (`commands.preprocess_data`).
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing import sources


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How one published dataset is read."""

    splits: Mapping[str, str]
    """Split -> pattern of its files under the dataset's directory. The first is the one to train on."""
    json_keys: tuple[str, ...]
    """Fields of a row, or columns, that hold the text."""
    exclude_sets: tuple[str, ...] = ()
    """Values of `meta.redpajama_set_name` whose rows are dropped."""


PRESETS: dict[str, Preset] = {
    "slimpajama": Preset(
        splits={split: f"{split}/chunk*/*.jsonl.zst" for split in ("train", "validation", "test")},
        json_keys=("text",),
        exclude_sets=("RedPajamaGithub",),  # StarCoder has the code
    ),
    "starcoder": Preset(splits={"train": "*/*.parquet"}, json_keys=("content",)),  # one directory a language
}


def inputs(name: str, folders: Sequence[str], split: str | None) -> tuple[str, ...]:
    """Patterns of the files of a split, the first of the preset where none is named, one for each directory.

    Raises:
        ConfigError: the dataset has no such split, or a directory no such files.
    """
    splits = PRESETS[name].splits
    split = split or next(iter(splits))
    if split not in splits:
        raise ConfigError(f"--dataset-split {split}: {name} has {', '.join(splits)}")
    patterns = tuple(os.path.join(glob.escape(folder), splits[split]) for folder in folders)
    for folder, pattern in zip(folders, patterns, strict=True):
        if not sources.is_url(folder) and not glob.glob(pattern):  # `inputs` refuses a URL without files
            raise ConfigError(
                f"--input {folder}: holds no files {splits[split]}, which --preset {name} reads as the {split} split; "
                f"give the dataset's own directory, or leave --preset out"
            )
    return patterns
