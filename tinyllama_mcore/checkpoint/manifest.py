"""The manifest of a checkpoint: the state of the run, its configuration, and a size and checksum for each file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tinyllama_mcore.checkpoint.layout import folder
from tinyllama_mcore.config import records
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import MANIFEST
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.sampling.sample_order import SampleOrder

SCHEMA = 2
"""Version of the format; a reader refuses another one."""


class Damaged(ConfigError):
    """A checkpoint is not what was written: the one before it may be taken in its place."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A skipped update, or a rollback."""

    iteration: int
    """After which it happened."""
    kind: str
    """"skipped": the update was skipped; "rolled back": the run returned to an earlier checkpoint."""
    reason: str
    """In words, with the figures that decided."""
    first_sample: int
    """First of the samples that did not change the weights."""
    end_sample: int
    """One past the last of them."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How far a run has come. No random state: after the initial weights, nothing in a run is drawn."""

    iteration: int = 0
    """Iterations done, with an update or without."""
    updates: int = 0
    """Updates that changed the weights: what Adam's bias correction counts."""
    consumed_samples: int = 0
    """Sequences seen; the next one of the run's order is this."""
    consumed_by_dataset: Mapping[str, int] = field(default_factory=dict)
    """Sequences seen of each dataset, by prefix."""
    recent_losses: tuple[float, ...] = ()
    """Losses of the newest updates that were made: what a spike is measured against."""
    skipped_in_a_row: int = 0
    """Updates skipped since the last one that was made."""
    events: tuple[Event, ...] = ()
    """Every skipped update and every rollback, oldest first."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file of the checkpoint has to be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the weights of a checkpoint come from: a run's samples, or another checkpoint."""

    versions: Mapping[str, str]
    """Package -> version that wrote it."""
    order: SampleOrder | None = None
    """What a run trained them on; None: they were imported."""
    imported_from: str | None = None
    """The directory that imported weights were read from."""
    imported_tokenizer: str | None = None
    """sha256 of the tokenizer beside imported weights; None: there was none."""

    @property
    def tokenizer_sha256(self) -> str | None:
        """Checksum of the tokenizer whose ids the model knows; None where nobody said."""
        return self.imported_tokenizer if self.order is None else self.order.tokenizer_sha256

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Provenance:
        """What `to_plain` wrote."""
        order = plain.get("order")
        return cls(
            versions=plain["versions"],
            order=None if order is None else SampleOrder.from_plain(order),
            imported_from=plain.get("imported_from"),
            imported_tokenizer=plain.get("tokenizer"),
        )

    def to_plain(self) -> dict[str, Any]:
        """As a manifest's JSON holds it."""
        plain = {
            "order": self.order and self.order.to_plain(),
            "imported_from": self.imported_from,
            "versions": dict(self.versions),
            "tokenizer": self.imported_tokenizer,
        }
        return {key: value for key, value in plain.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that stands beside the tensors."""

    state: RunState
    run: Mapping[str, Any]
    """The configuration as `config.records` writes it; `config` is the same with types."""
    provenance: Provenance
    parameters: int
    """Elements of all logical parameters."""
    kinds: tuple[str, ...]
    """Which state the files hold: "model", and Adam's moments unless the weights were imported."""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    schema: int = SCHEMA

    @cached_property
    def config(self) -> RunConfig:
        """The configuration of the run. Fields that this program does not know are skipped.

        Raises:
            ConfigError: a field that has no default is missing: another version of this program wrote it.
        """
        return records.from_plain(RunConfig, self.run, MANIFEST, strict=False)


class Checkpoint(NamedTuple):
    """A checkpoint that is there."""

    folder: Path
    """Its directory."""
    manifest: Manifest
    """What its manifest says."""


def to_text(manifest: Manifest) -> str:
    """The manifest as JSON, with a checksum over all the rest of it."""
    record = json.loads(json.dumps({**asdict(manifest), "provenance": manifest.provenance.to_plain()}))
    return json.dumps({**record, "checksum": _checksum(record)}, indent=1) + "\n"


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint directory.

    Raises:
        Damaged: it is not what was written there.
        ConfigError: another version of this program wrote it.
    """
    path = checkpoint / MANIFEST
    try:
        record = json.loads(path.read_bytes())
        if record.pop("checksum") != _checksum(record):
            raise Damaged(f"{path} does not match its own checksum")
        if record["schema"] != SCHEMA:
            raise ConfigError(f"{path} has format {record['schema']}; this program reads format {SCHEMA}")
        found = Manifest(
            **{
                **record,
                "state": _state(record["state"]),
                "provenance": Provenance.from_plain(record["provenance"]),
                "kinds": tuple(record["kinds"]),
                "files": {name: FileRecord(**entry) for name, entry in record["files"].items()},
            }
        )
    except ConfigError:  # a ValueError too
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path} is not a manifest ({type(error).__name__}: {error})") from error
    if checkpoint != folder(checkpoint.parent, found.state.iteration):
        raise Damaged(f"{path} says iteration {found.state.iteration}, which is not its directory's")
    return found


def _state(record: Mapping[str, Any]) -> RunState:
    """A state as JSON has it: lists for tuples."""
    losses, events = tuple(record["recent_losses"]), tuple(Event(**event) for event in record["events"])
    return RunState(**{**record, "recent_losses": losses, "events": events})


def file_record(path: Path) -> FileRecord:
    """Size and checksum of a file as it is now."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(bytes=path.stat().st_size, sha256=digest)


def damage(checkpoint: Path, name: str, expected: FileRecord, *, contents: bool = True) -> str | None:
    """What is wrong with one file of a checkpoint, in words; None where it is what the manifest says.

    Args:
        checkpoint: its directory.
        name: the file's name in the manifest; one that leads out of the directory is damage, whatever lies there.
        expected: what the manifest says of it.
        contents: whether to read it; otherwise its size is all that is compared.
    """
    path = checkpoint / name
    try:
        if Path(name).name != name or path.resolve().parent != checkpoint.resolve():
            return f"{path} is outside the checkpoint"
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != expected.bytes:
            return f"{path} has {path.stat().st_size:,} bytes, its manifest says {expected.bytes:,}"
        if contents and file_record(path) != expected:
            return f"{path} does not match its checksum in the manifest"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {error}"
    return None
