"""Load: into an engine on every rank, or tensor by tensor in one process without a process group.

Nothing is unpickled. Every file is compared with the manifest's size and checksum before a tensor of it is used.
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
from tinyllama_mcore.checkpoint.layout import MANIFEST
from tinyllama_mcore.checkpoint.manifest import Manifest
from tinyllama_mcore.config.schema import ConfigError

if TYPE_CHECKING:
    from tinyllama_mcore.engine.protocol import ShardingEngine


def verify(folder: Path, manifest: Manifest, *, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the files of a checkpoint, in words; reads every `parts`-th file from `part` on."""
    problems = []
    for name, record in sorted(manifest.files.items())[part::parts]:
        if problem := manifests.damage(folder, name, record):
            problems.append(problem)
    if part == 0:
        extra = {path.name for path in folder.iterdir()} - set(manifest.files) - {MANIFEST}
        problems += [f"{folder / name} is not in its manifest" for name in sorted(extra)]
    return problems


def load(folder: Path, manifest: Manifest, engine: ShardingEngine, tensors: store.TensorStore) -> None:
    """Fill the engine from a checkpoint of any layout. Collective over all ranks.

    Raises:
        ConfigError: on every rank alike, where any file is not what the manifest says.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found: list[list[str]] = [[] for _ in range(ranks)]
    torch.distributed.all_gather_object(found, verify(folder, manifest, part=rank, parts=ranks))
    refuse_damage(folder, [problem for problems in found for problem in problems])
    room = tensors.empty(manifest.kinds)
    store.read(folder, room)
    engine.load_state(tensors.lookup(room), manifest.state.updates)


def refuse_damage(folder: Path, problems: list[str]) -> None:
    """ConfigError that names every damaged file, if there is one."""
    if problems:
        raise ConfigError(
            f"checkpoint {folder.name} is damaged: {'; '.join(problems)}. "
            "Remove its folder to go on from the checkpoint before it"
        )


class CheckpointReader:
    """A checkpoint's whole logical tensors, in one process and one at a time."""

    def __init__(self, folder: Path) -> None:
        """Open and verify `folder` (from `layout.find`). ConfigError where it is damaged."""
        self.folder = folder
        self.manifest = manifests.read(folder)
        refuse_damage(folder, verify(folder, self.manifest))
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
