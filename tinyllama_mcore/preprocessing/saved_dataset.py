"""What Hugging Face's `datasets` says of a directory that `save_to_disk` wrote: its shards and their order, its splits.

Read without `datasets` (5.2 was looked at): two small JSON files. Neighbour: `inputs` meets such directories.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing import sources

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
"""Of a dataset, two; of a DatasetDict, whose splits are directories beside it."""


def shards(folder: str, names: Collection[str]) -> list[str]:
    """Names of the files that hold a saved dataset, in its order; empty where the directory is none.

    Raises:
        ConfigError: a file is missing, or the rows are chosen by another file.
    """
    if STATE not in names or INFO not in names:
        return []
    state = _read(f"{folder}/{STATE}")
    try:
        files, chosen = [file["filename"] for file in state["_data_files"]], state.get("_indices_data_files")
    except (KeyError, TypeError):
        raise ConfigError(f"--input {folder}/{STATE}: names no _data_files, as datasets writes: save it anew") from None
    if chosen:
        raise ConfigError(
            f"--input {folder}: its rows are chosen by an indices file, which is not read: "
            "load it with datasets, call flatten_indices() and save it anew"
        )
    if missing := [name for name in files if name not in names]:
        raise ConfigError(
            f"--input {folder}: {STATE} names {missing[0]}, which is not there: was its copy cut short? Fetch it again"
        )
    return files


def splits_left_out(folder: str, names: Collection[str], split: str | None) -> list[str] | None:
    """Directories of a DatasetDict that are not of `split`; None where the directory is none.

    Raises:
        ConfigError: `split` is None, or there is none of this name.
    """
    if SPLITS not in names:
        return None
    found = _read(f"{folder}/{SPLITS}")
    known = found.get("splits") if isinstance(found, dict) else None
    if not isinstance(known, list):
        raise ConfigError(f"--input {folder}/{SPLITS}: names no splits, as datasets writes: save it anew")
    if split not in known:
        given = "which of them is read has to be said" if split is None else f"--dataset-split {split} is none of them"
        raise ConfigError(
            f"--input {folder}: is a DatasetDict with the splits {', '.join(known)}; {given}: "
            f"--dataset-split {known[0] if known else 'NAME'}"
        )
    return [f"{folder}/{name}" for name in known if name != split]


def _read(path: str) -> Any:  # noqa: ANN401
    try:
        with sources.opened(path) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--input {path}: cannot be read as JSON: {error}") from None
