"""Load: into an engine on every rank, or tensor by tensor in one process without a process group.

Nothing is unpickled. Every file is compared with the manifest's size and checksum before a tensor of it is used: here
in one process, in `selection` over all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.metadata import MetadataIndex

from tinyllama_mcore.checkpoint import manifest as manifests
from tinyllama_mcore.checkpoint import store
from tinyllama_mcore.checkpoint.manifest import Checkpoint, Manifest

if TYPE_CHECKING:
    from tinyllama_mcore.engine.base import ShardingEngine


def verify(folder: Path, manifest: Manifest, *, part: int = 0, parts: int = 1, contents: bool = True) -> list[str]:
    """What is wrong with the files of a checkpoint, in words.

    Args:
        folder: the checkpoint.
        manifest: what it should hold.
        part: which of `parts` readers this is; it reads every `parts`-th file.
        parts: how many share the work.
        contents: whether files are read, or only their sizes compared.
    """
    problems = []
    for name, record in sorted(manifest.files.items())[part::parts]:
        problem = manifests.damage(folder, name, record, contents=contents)
        if problem is None and contents:
            problem = store.not_tensors(folder / name)
        problems += [problem] if problem else []
    if part == 0:
        extra = {path.name for path in folder.glob(f"*{store.SUFFIX}")} - set(manifest.files)
        problems += [f"{folder / name} is not in its manifest" for name in sorted(extra)]
    return problems


def sentence(folder: Path, problems: list[str]) -> str:
    """That a checkpoint is damaged, and how."""
    return f"checkpoint {folder} is damaged: {'; '.join(problems)}"


def load(checkpoint: Checkpoint, engine: ShardingEngine, tensors: store.TensorStore) -> None:
    """Fill the engine from a checkpoint of any layout, which `selection.agree` has verified. Collective."""
    room = tensors.empty(checkpoint.manifest.kinds)
    store.read(checkpoint.folder, room)
    engine.load_state(tensors.lookup(room), checkpoint.manifest.state.updates)


class CheckpointReader:
    """A checkpoint's whole logical tensors, in one process and one at a time."""

    def __init__(self, folder: Path) -> None:
        """Open and verify `folder` (from `layout.find`). ConfigError where it is damaged."""
        self.folder = folder
        self.manifest = manifests.read(folder)
        if problems := verify(folder, self.manifest):
            raise manifests.Damaged(sentence(folder, problems))
        self._index = store.index(folder)

    def keys(self) -> Iterator[str]:
        """Every `<kind>.<logical name>` that the checkpoint holds."""
        return iter(self._index.tensors)

    def shape(self, key: str) -> torch.Size:
        """Shape of the whole tensor."""
        return self._index.tensors[key].size

    def tensor(self, key: str) -> torch.Tensor:
        """The whole tensor, fp32, on the CPU."""
        entry = self._index.tensors[key]
        whole = torch.empty(entry.size, dtype=entry.properties.dtype)
        for chunk in entry.chunks:
            file = self._index.files[MetadataIndex(key, chunk.offsets)]
            window = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
            with safe_open(file, framework="pt") as stored:
                whole[window] = stored.get_tensor(key)
        return whole
