"""Logical tensors between an engine and files, for any layout on either side.

On the way out a rank takes the tensor-parallel shards that its engine hands it, splits them into logical parameters,
drops vocabulary padding, and keeps its data-parallel rank's rows; torch.distributed.checkpoint plans who writes what,
and `tensor_file` writes plain safetensors with each piece's place in the file's header. On the way in the same,
backwards. So no file and no key tells which layout wrote it.
Rows: dim 0 of a shard. Keys: `<kind>.<logical name>`, fp32.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from tinyllama_mcore.checkpoint import tensor_file
from tinyllama_mcore.checkpoint.manifest import FileRecord
from tinyllama_mcore.checkpoint.staging import Staging
from tinyllama_mcore.config.parameters import LogicalParameter, logical_parameters
from tinyllama_mcore.config.schema import ModelConfig
from tinyllama_mcore.model.parameters import pad_rows, part_names, shard_of

if TYPE_CHECKING:  # exporters read checkpoints without Megatron, whose import takes ten seconds
    from tinyllama_mcore.engine.base import ShardingEngine
    from tinyllama_mcore.engine.protocol import StateLookup
    from tinyllama_mcore.parallel.mesh import Mesh

T = TypeVar("T")

FILE_BYTES = 256 << 20
"""Largest size of a file with tensors, unless it holds one that is larger."""
MOST_THREADS = 8
"""Threads of a rank that write: more gain nothing where eight ranks share a machine."""
SUFFIX = ".safetensors"
"""How the name of a file with tensors ends; torch's reader takes every such file of a directory."""


class TensorStore:
    """Translates between one engine's shards and logical tensors spread over the mesh."""

    def __init__(self, model: ModelConfig, mesh: Mesh) -> None:
        self._mesh = mesh
        self._parameters = {p.name: p for p in logical_parameters(model)}
        self._host: dict[str, torch.Tensor] = {}

    def reserve(self, kinds: tuple[str, ...]) -> None:
        """Keep host memory for `collect`, page-locked beside a GPU, so that copies neither wait nor allocate."""
        pin = self._mesh.device.type == "cuda"
        for key, room in self.empty(kinds).items():
            self._host[key] = torch.empty_like(room.to_local(), pin_memory=pin)

    def collect(self, engine: ShardingEngine, kinds: tuple[str, ...]) -> dict[str, DTensor]:
        """This rank's rows of every logical tensor, copied to the CPU. Collective.

        Where memory was reserved, the next call writes over it.
        """
        tensors = {}
        with Staging(torch.device("cpu") if self._host else self._mesh.device) as staging:
            for kind in kinds:
                for name, shard in engine.state(kind):
                    for part, local in self._split(name, shard):
                        rows = shard_of(local, 0, self._mesh.shard.rank, self._mesh.shard.size)
                        key = f"{kind}.{part.name}"
                        reserved = self._host.get(key)
                        host = staging.copy(rows) if reserved is None else reserved.copy_(rows, non_blocking=True)
                        tensors[key] = self._spread(part, host)
        if self._mesh.device.type == "cuda":
            torch.cuda.synchronize()
        return tensors

    def empty(self, kinds: tuple[str, ...]) -> dict[str, DTensor]:
        """Room for this rank's rows of every logical tensor."""
        mesh = self._mesh
        tensors = {}
        for kind in kinds:
            for name, parameter in self._parameters.items():
                whole = torch.empty(parameter.shape, device="meta")
                local = shard_of(whole, parameter.tp_dim, mesh.tensor.rank, mesh.tensor.size)
                rows = torch.empty(shard_of(local, 0, mesh.shard.rank, mesh.shard.size).shape)
                tensors[f"{kind}.{name}"] = self._spread(parameter, rows)
        return tensors

    def lookup(self, tensors: dict[str, DTensor]) -> StateLookup:
        """How an engine takes `tensors`: gathered along the shard axis one parameter at a time. Collective."""

        def shard(kind: str, name: str) -> torch.Tensor | None:
            parts = part_names(name)
            if f"{kind}.{parts[0]}" not in tensors:
                return None
            return torch.cat([self._whole_rows(self._parameters[part], tensors[f"{kind}.{part}"]) for part in parts])

        return shard

    def _split(self, name: str, shard: torch.Tensor) -> Iterator[tuple[LogicalParameter, torch.Tensor]]:
        """The logical parts of a module's tensor, without vocabulary padding."""
        names = part_names(name)
        for part_name, local in zip(names, shard.chunk(len(names)), strict=True):
            part = self._parameters[part_name]
            whole = torch.empty(part.shape, device="meta")
            true = shard_of(whole, part.tp_dim, self._mesh.tensor.rank, self._mesh.tensor.size)
            yield part, local[: true.shape[0]]

    def _whole_rows(self, parameter: LogicalParameter, tensor: DTensor) -> torch.Tensor:
        """This rank's tensor-parallel shard [rows, ...], padded as the module has it."""
        local = tensor.redistribute(placements=[tensor.placements[0], Replicate()]).to_local()
        return pad_rows(local, parameter, self._mesh.tensor.size)

    def _spread(self, parameter: LogicalParameter, rows: torch.Tensor) -> DTensor:
        """`rows` as this rank's piece of the logical tensor: cut along the tensor axis first, then by rows."""
        along_tensor: Placement = Replicate() if parameter.tp_dim is None else Shard(parameter.tp_dim)
        stride = torch.empty(parameter.shape, device="meta").stride()
        return DTensor.from_local(
            rows,
            self._mesh.storage,
            [along_tensor, Shard(0)],
            run_check=False,
            shape=torch.Size(parameter.shape),
            stride=stride,
        )


class _Files(dcp.HuggingFaceStorageWriter):
    """Writes a rank's pieces as torch's writer does, to several files by several threads, with their checksums.

    Torch's own makes each file in memory, twice over, and its checksum would need another reading of every byte.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._folder = folder
        self.records: dict[str, FileRecord] = {}
        """What was written, by the name of the file."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Write files of at most `FILE_BYTES`, or of one tensor; not flushed. OSError where one cannot be written."""
        groups = _by_file(plan.items)
        shard = plan.storage_data["shard_index"]
        names = [f"shard-{shard:05d}-model-{n:05d}-of-{len(groups):05d}{SUFFIX}" for n in range(1, len(groups) + 1)]

        def write(name: str, items: list[WriteItem]) -> FileRecord:
            pieces = {item.index.fqn: (item, planner.resolve_data(item)) for item in items}
            return tensor_file.write(self._folder / name, {key: _piece(*each) for key, each in pieces.items()})

        self.records = dict(zip(names, in_threads(write, names, groups), strict=True))
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result([])  # torch's `finish` asks for none
        return done


def _piece(item: WriteItem, data: object) -> tensor_file.Piece:
    assert item.tensor_data is not None
    assert isinstance(data, torch.Tensor)
    return tensor_file.Piece(tensor=data, offsets=tuple(item.tensor_data.chunk.offsets))


def _by_file(items: Sequence[WriteItem]) -> list[list[WriteItem]]:
    """The items of each file, in order."""
    groups: list[list[WriteItem]] = []
    size = 0
    for item in items:
        assert item.tensor_data is not None
        more = item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize
        if not groups or size + more > FILE_BYTES:
            groups, size = [*groups, []], 0
        groups[-1].append(item)
        size += more
    return groups


def in_threads(work: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
    """`map` by several threads, for work that waits for a disk or does not hold Python's lock. Raises what it does."""
    threads = min(MOST_THREADS, max(2, len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(threads, thread_name_prefix="checkpoint") as pool:
        return list(pool.map(work, *arguments))


def write(folder: Path, tensors: Mapping[str, torch.Tensor], group: ProcessGroup | None) -> dict[str, FileRecord]:
    """Write this rank's pieces as safetensors files, and give their sizes and checksums by name.

    They are in the page cache then, not on the disk: `flush` comes next. Collective over `group`; None: one process.
    """
    mine = {key: tensor for key, tensor in tensors.items() if _local(tensor).numel() > 0}
    writer = _Files(folder)
    dcp.save(mine, storage_writer=writer, process_group=group, no_dist=group is None)
    return writer.records


def flush(paths: Sequence[Path]) -> None:
    """Put files and directories on the disk. OSError where it does not take them.

    Some file systems have no fsync of a directory, and nothing is wrong then (PostgreSQL's `fsync_fname`).
    """
    in_threads(_flush_one, paths)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def read(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill this rank's pieces in place from whatever pieces the files hold. Collective over all ranks."""
    mine = {key: tensor for key, tensor in tensors.items() if _local(tensor).numel() > 0}
    dcp.load(mine, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))


def not_tensors(file: Path) -> str | None:
    """Why a file that its manifest vouches for is no safetensors file, in words; None where it is one."""
    try:
        with safe_open(file, framework="pt"):
            return None
    except (OSError, SafetensorError) as error:
        return f"{file} is not a safetensors file ({error})"


@dataclass(frozen=True, kw_only=True)
class Index:
    """What the headers of a checkpoint's files say."""

    tensors: Mapping[str, TensorStorageMetadata]
    """Whole shape and pieces of each key."""
    files: Mapping[MetadataIndex, str]
    """Path of the file that holds a piece."""


def index(folder: Path) -> Index:
    """Read the header of every tensor file of a checkpoint."""
    metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata()
    tensors = cast(Mapping[str, TensorStorageMetadata], metadata.state_dict_metadata)
    return Index(tensors=tensors, files={piece: place.relative_path for piece, place in metadata.storage_data.items()})


def elements(folder: Path, kind: str) -> int:
    """Elements of `kind` that the files hold, counted over every piece."""
    entries = (entry for key, entry in index(folder).tensors.items() if key.startswith(f"{kind}."))
    return sum(chunk.sizes.numel() for entry in entries for chunk in entry.chunks)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
