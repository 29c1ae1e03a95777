"""What is evaluated: a checkpoint of a run, merged into a temporary directory, or a Hugging Face directory as it is.

A run may go on meanwhile and remove what is read (`--keep-latest`), or write the same iteration again after a rollback:
a model is known by what its files hold, not by its iteration, and one that went away is `Gone`. No lock is taken.
Neighbours: `hf.export` merges, `checkpoint.layout` lists, `scores` remembers by identity.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.checkpoint import manifest as manifests
from tinyllama_mcore.checkpoint.manifest import Damaged
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import MANIFEST, holds_checkpoint, unfinished_checkpoints
from tinyllama_mcore.hf.export import ExportJob, export


class Gone(ConfigError):
    """A checkpoint was removed or replaced while it was read: nothing is wrong, and nothing can be said of it."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model to evaluate."""

    name: str
    """What tables call it: the checkpoint's directory, or the path that was given."""
    directory: Path
    """The checkpoint's, or the Hugging Face model's."""
    identity: str
    """Hash of what its files hold."""
    iteration: int | None = None
    """None: not a checkpoint of ours."""
    tokens: int | None = None
    """Seen by then; None: not a checkpoint of ours."""
    train_iters: int = 0
    """Iterations of the whole run."""


@dataclass(frozen=True, kw_only=True)
class Merging:
    """How checkpoints are merged: see `hf.export.ExportJob`."""

    dtype: str = "bf16"
    tokenizer_model: Path | None = None
    verify: bool = True


def find(directory: Path, iteration: int | None) -> Model:
    """The model in a directory: the newest checkpoint of a run, or `iteration`'s, or a Hugging Face model.

    Raises:
        ConfigError: there is none.
    """
    if holds_checkpoint(str(directory)) or unfinished_checkpoints(str(directory)) or iteration is not None:
        return checkpoint(layout.find(directory, iteration))
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"{directory} holds no model: neither checkpoints of a run (iter_.../{MANIFEST}) nor a Hugging Face model "
            "(config.json)"
        )
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.iterdir() if path.is_file()):
        with path.open("rb") as stream:
            digest.update(path.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return Model(name=str(directory), directory=directory, identity=digest.hexdigest())


def checkpoint(folder: Path) -> Model:
    """The checkpoint in a directory of one. ConfigError where it is damaged, Gone where it went away."""
    with _there(folder):
        identity = _identity(folder)
        saved = manifests.read(folder)
        return Model(
            name=folder.name,
            directory=folder,
            identity=identity or "",  # there was none, so that the manifest could not be read either
            iteration=saved.state.iteration,
            tokens=saved.state.consumed_samples * saved.config.batch.seq_length,
            train_iters=saved.config.batch.train_iters,
        )


def listed(directory: Path) -> list[Model]:
    """The checkpoints of a directory, oldest first; damaged ones too, which merging then tells."""
    found = []
    for iteration in layout.iterations(directory):
        folder = layout.folder(directory, iteration)
        try:
            found.append(checkpoint(folder))
        except Gone:
            continue  # between the listing and now
        except Damaged:
            found.append(
                Model(name=folder.name, directory=folder, identity=_identity(folder) or "", iteration=iteration)
            )
    return found


@contextlib.contextmanager
def merged(model: Model, merging: Merging) -> Iterator[Path]:
    """The model as a Hugging Face directory: itself, or a temporary one that is removed afterwards.

    Raises:
        ConfigError: the checkpoint is damaged, its tokenizer is not there, or the temporary directory is full.
        Gone: it was removed or replaced meanwhile.
        Mismatch: what was merged is not what the checkpoint holds.
    """
    if model.iteration is None:
        yield model.directory
        return
    with tempfile.TemporaryDirectory(prefix="tinyllama-evaluate-") as place:
        output = Path(place) / model.name
        with _there(model.directory, model.identity):
            export(
                ExportJob(
                    load=model.directory.parent,
                    output=output,
                    iteration=model.iteration,
                    dtype=merging.dtype,
                    tokenizer_model=merging.tokenizer_model,
                    verify=merging.verify,
                )
            )
            if _identity(model.directory) != model.identity:
                raise Damaged(f"{model.directory} is another checkpoint than a moment ago")
        yield output


@contextlib.contextmanager
def _there(folder: Path, identity: str | None = None) -> Iterator[None]:
    """Raise Gone for whatever fails inside because the checkpoint was removed or replaced; let the rest pass.

    What reading finds then depends on where it was: a missing file, a short one, a checksum of the other checkpoint.
    """
    try:
        yield
    except Exception as error:
        now = _identity(folder)
        if now is None or (identity is not None and now != identity):
            happened = "removed" if now is None else "replaced"
            raise Gone(f"{folder} was {happened} while it was read") from error
        if isinstance(error, OSError):
            raise ConfigError(f"{folder} cannot be merged: {error} (TMPDIR says where)") from error
        raise


def _identity(folder: Path) -> str | None:
    """Hash of a checkpoint's manifest, which has the checksum of every file; None where there is none."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None
