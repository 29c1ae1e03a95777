"""Whether a pair may be written at a prefix: what another command made is overwritten only with --overwrite.

Neighbours: `preprocess` and `merge` ask before they read anything; `indexed` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import unwritable
from tinyllama_mcore.data import indexed, receipt
from tinyllama_mcore.preprocessing.sources import RawFile


def refuse_taken(prefix: str | Path, *, overwrite: bool) -> None:
    """Refuse a prefix where a pair cannot be written, or where there is a finished one. Changes nothing.

    Args:
        prefix: of the pair to come.
        overwrite: whether a pair that is there may be overwritten.

    Raises:
        ConfigError: naming the file that is in the way.
    """
    if problem := unwritable(Path(prefix).parent):
        raise ConfigError(f"--output-prefix {prefix}: cannot be written ({problem})")
    files = (indexed.bin_path(prefix), indexed.idx_path(prefix), receipt.path_of(prefix), quarantined(prefix))
    there = next((file for file in files if file.exists()), None)
    if there is not None and not overwrite:
        raise ConfigError(f"--output-prefix {prefix}: {there} exists; name another prefix, or give --overwrite")


def quarantined(prefix: str | Path) -> Path:
    """Where the bad rows of a pair are kept."""
    return Path(f"{prefix}.quarantine.jsonl")


def is_of(prefix: str | Path, *, tokenizer_sha256: str, append_eod: bool, inputs: Sequence[RawFile]) -> bool:
    """Whether an earlier start of the same job made the pair: by its receipt, or by the shards that it left."""
    slip = receipt.read(prefix)
    if slip is None:
        return Path(f"{prefix}.parts").is_dir()  # killed between the pair and its receipt
    made = (slip.tokenizer_sha256, slip.append_eod, [file.path for file in slip.inputs])
    return made == (tokenizer_sha256, append_eod, [str(path) for path in inputs])
