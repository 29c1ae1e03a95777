"""The manifest of a checkpoint: the state of the run, its configuration, and a size and checksum for each file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinyllama_mcore.checkpoint.layout import MANIFEST
from tinyllama_mcore.config.schema import ConfigError

SCHEMA = 2
"""Version of the format; a reader refuses a newer one. 2: a state knows its recent losses and its events."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that a run of sound steps does not have."""

    iteration: int
    """After which it happened."""
    kind: str
    """"skipped": the update was left out; "rolled back": an earlier checkpoint was taken up."""
    reason: str
    """In words, with the figures that decided."""
    first_sample: int
    """First of the samples that taught nothing."""
    end_sample: int
    """One past the last of them."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How far a run has come. No random state: after the initial weights, nothing in a run is drawn."""

    iteration: int = 0
    """Optimizer updates done, skipped ones included."""
    updates: int = 0
    """Updates that changed the weights: what Adam's bias correction counts."""
    consumed_samples: int = 0
    """Sequences seen; the next one of the run's order is this."""
    consumed_by_dataset: Mapping[str, int] = field(default_factory=dict)
    """Sequences seen of each dataset, by prefix."""
    recent_losses: tuple[float, ...] = ()
    """Losses of the newest updates that were made: what a spike is measured against."""
    skipped_in_a_row: int = 0
    """Updates left out since the last one that was made."""
    events: tuple[Event, ...] = ()
    """Every update left out and every return to a checkpoint, oldest first."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file of the checkpoint has to be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that stands beside the tensors."""

    state: RunState
    run: Mapping[str, Any]
    """The resolved configuration, as `config.records` writes it."""
    provenance: Mapping[str, Any]
    """Versions, checksum of the tokenizer, fingerprints of the datasets."""
    parameters: int
    """Elements of all logical parameters."""
    kinds: tuple[str, ...]
    """Which state the files hold: "model", and Adam's moments unless the weights were imported."""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    schema: int = SCHEMA


def to_text(manifest: Manifest) -> str:
    """The manifest as JSON."""
    return json.dumps(asdict(manifest), indent=1) + "\n"


def read(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint folder. ConfigError where it is damaged or newer than this program."""
    path = checkpoint / MANIFEST
    try:
        record = json.loads(path.read_text())
        if record["schema"] > SCHEMA:
            raise ConfigError(f"{path} has format {record['schema']}; this program reads up to {SCHEMA}: update it")
        return Manifest(
            **{
                **record,
                "state": _state(record["state"]),
                "kinds": tuple(record["kinds"]),
                "files": {name: FileRecord(**entry) for name, entry in record["files"].items()},
            }
        )
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); take an older checkpoint with --iteration") from error


def _state(record: Mapping[str, Any]) -> RunState:
    """A state as JSON has it: lists for tuples, and without what an older format did not know."""
    losses, events = record.get("recent_losses", ()), record.get("events", ())
    return RunState(**{**record, "recent_losses": tuple(losses), "events": tuple(Event(**event) for event in events)})


def file_record(path: Path) -> FileRecord:
    """Size and checksum of a file as it is now."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(bytes=path.stat().st_size, sha256=digest)


def damage(checkpoint: Path, name: str, expected: FileRecord) -> str | None:
    """What is wrong with one file of a checkpoint, in words; None where it is what the manifest says."""
    path = checkpoint / name
    if path.parent != checkpoint or not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != expected.bytes:
        return f"{path} has {path.stat().st_size:,} bytes, its manifest says {expected.bytes:,}"
    if file_record(path) != expected:
        return f"{path} has another checksum than its manifest says"
    return None
