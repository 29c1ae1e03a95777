"""A checkpoint of any layout -> a directory that `transformers` loads: weights, config, tokenizer, model card.

The directory is built beside its place, checked there (count of parameters, every weight read back, logits), and
renamed at the end, so that it is right or is not there. Neighbours: `names` has the layout of each tensor, `parity` the
logits; `commands.merge_to_hf` is the command line. Memory: one tensor, and one fp32 model while logits are checked.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from tinyllama_mcore.checkpoint import layout, probe
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.parameters import LogicalParameter, known_vocab_size, logical_parameters
from tinyllama_mcore.config.schema import DataConfig, ModelConfig
from tinyllama_mcore.data import receipt, tokenizer_files
from tinyllama_mcore.data.tokenizer import SentencePieceTokenizer, Tokenizer
from tinyllama_mcore.hf import byte_level, names, parity
from tinyllama_mcore.hf.config import DTYPES, generation_config, parameter_count, to_hf_config
from tinyllama_mcore.hf.model_card import CARD, model_card
from tinyllama_mcore.hf.output import built_beside, refuse_taken
from tinyllama_mcore.hf.parity import Mismatch, Parity, Replay
from tinyllama_mcore.hf.tokenizer import write_tokenizer
from tinyllama_mcore.hf.weights import INDEX, WeightFiles, write_file

if TYPE_CHECKING:
    from tinyllama_mcore.data.byte_level import HuggingFaceTokenizer

MAX_SHARD_BYTES = 5 * 10**9
"""Largest safetensors file, as Hugging Face's own limit was for years; a larger tensor gets a file of its own."""


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What to export, and to where."""

    load: Path
    """Directory that a run saved to."""
    output: Path
    """Directory to make; may exist if it is empty."""
    iteration: int | None = None
    """Iteration of the checkpoint; None: the newest finished one."""
    dtype: str = "bf16"
    """Dtype of the written weights: a key of `hf.config.DTYPES`."""
    tokenizer_model: Path | None = None
    """The tokenizer; None: the one that the run was given, or that the receipt of its data names."""
    tokenizer_type: str | None = None
    """A name of `config.tokenizer_types.TYPES`; None: by the file."""
    eod_token: str | None = None
    """Special token that ends a document; None: the run's, else the tokenizer's own."""
    verify: bool = True
    """Compare logits with the training model's before the directory appears."""
    max_shard_bytes: int = MAX_SHARD_BYTES


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    directory: Path
    iteration: int
    parameters: int
    files: tuple[str, ...]
    parity: Parity | None
    """None where the logits were not compared."""
    replay: Replay | None
    """None where logits were not compared, or the checkpoint has no probe."""


def export(job: ExportJob) -> Exported:
    """Write the directory.

    Raises:
        ConfigError: there is no such checkpoint or tokenizer, they do not belong together, or the output is taken.
        Mismatch: what was written is not what the checkpoint holds; nothing is left behind.
    """
    refuse_taken(job.output)
    reader = CheckpointReader(layout.find(job.load, job.iteration))
    model = model_of(reader)
    tokenizer = tokenizer_of(job, reader)
    with built_beside(job.output) as beside:
        return _fill(beside, job, reader, model, tokenizer)


def _fill(beside: Path, job: ExportJob, reader: CheckpointReader, model: ModelConfig, tokenizer: Tokenizer) -> Exported:
    """Everything that the directory holds, checked."""
    if tokenizer.vocab_size > known_vocab_size(model):
        raise ConfigError(
            f"tokenizer {tokenizer.path} has {tokenizer.vocab_size:,} pieces, but the checkpoint's vocabulary only "
            f"{model.vocab_size:,}; a model needs an embedding row for each piece: give the tokenizer that made the "
            "data with --tokenizer-model"
        )
    roles = _write_tokenizer(tokenizer, beside, model)
    config = to_hf_config(model, dtype=job.dtype, roles=roles)
    _write_json(beside / "config.json", config)
    _write_json(beside / "generation_config.json", generation_config(roles))
    if not isinstance(tokenizer, SentencePieceTokenizer):
        byte_level.check_same_ids(cast("HuggingFaceTokenizer", tokenizer), beside)
    read = functools.partial(rounded, reader, DTYPES[job.dtype])
    write_weights(beside, model, read, job)
    count = check_weights(beside, model, read)
    if count != parameter_count(config):
        raise Mismatch(f"{count:,} parameters were written; config.json describes {parameter_count(config):,}")
    found = replayed = None
    if job.verify:
        kept = probe.kept_in(reader)
        found, replayed = parity.check_export(beside, model, lambda name: read(name).float(), kept, job.dtype)
    end = tokenizer.token(tokenizer.eod)
    (beside / CARD).write_text(model_card(reader.manifest, model, count, job.dtype, found, end=end), encoding="utf-8")
    return Exported(
        directory=job.output,
        iteration=reader.manifest.state.iteration,
        parameters=count,
        files=tuple(sorted(path.name for path in beside.iterdir())),
        parity=found,
        replay=replayed,
    )


def model_of(reader: CheckpointReader) -> ModelConfig:
    """The architecture that a checkpoint says it is of. ConfigError where its tensors have other names or shapes."""
    model = reader.manifest.config.model
    expected = {f"model.{p.name}": p.shape for p in logical_parameters(model)}
    held = {key: tuple(reader.shape(key)) for key in reader.keys() if key.startswith("model.")}  # noqa: SIM118
    wrong = sorted(key for key in expected.keys() | held.keys() if expected.get(key) != held.get(key))
    if wrong:
        key = wrong[0]
        raise ConfigError(
            f"checkpoint {reader.folder} does not hold the model that its manifest describes: {key} is "
            f"{held.get(key, 'missing')}, expected {expected.get(key, 'no such tensor')} ({len(wrong)} tensors differ)"
        )
    return model


def tokenizer_of(job: ExportJob, reader: CheckpointReader) -> Tokenizer:
    """The tokenizer that was given, or the run's own.

    Raises:
        ConfigError: there is none, or it is another than the one that made the run's data.
    """
    data, recorded = reader.manifest.config.data, reader.manifest.provenance.tokenizer_sha256
    path = job.tokenizer_model or data.tokenizer_model or _of_the_data(data, recorded)
    if path is None:
        raise ConfigError(
            "the run that wrote this checkpoint named no tokenizer, and no receipt of its data is here to name it: "
            "give it with --tokenizer-model"
        )
    if not Path(path).exists():
        raise ConfigError(f"tokenizer model {path} does not exist: say where it is with --tokenizer-model")
    kind = job.tokenizer_type or (None if job.tokenizer_model else data.tokenizer_type)
    known = {} if data.eod is None or recorded is None else {recorded: data.eod}
    tokenizer = tokenizer_files.load(path, kind, job.eod_token or known)
    if recorded not in (None, found := tokenizer.vocabulary.sha256):
        raise ConfigError(
            f"tokenizer model {tokenizer.path} is not the one that made the run's data (sha256 {found[:12]}, the "
            f"checkpoint says {recorded[:12]}): give that one with --tokenizer-model"
        )
    return tokenizer


def _of_the_data(data: DataConfig, recorded: str | None) -> str | None:
    """The tokenizer that a receipt of the run's data names, as the run itself took it; None where none is here."""
    receipts = (receipt.read(prefix) for _, prefix in data.blend)
    return next((each.tokenizer_model for each in receipts if each and each.tokenizer_sha256 == recorded), None)


def _write_tokenizer(tokenizer: Tokenizer, directory: Path, model: ModelConfig) -> dict[str, int]:
    """Write the tokenizer's files; returns "bos", "eos" and "pad" -> id, for those that there are."""
    longest = model.max_position_embeddings
    if isinstance(tokenizer, SentencePieceTokenizer):
        return write_tokenizer(Path(tokenizer.path), directory, max_length=longest, eod=tokenizer.eod).roles
    return byte_level.write_byte_level(cast("HuggingFaceTokenizer", tokenizer), directory, max_length=longest)


def rounded(reader: CheckpointReader, dtype: torch.dtype, logical_name: str) -> torch.Tensor:
    """A whole weight of the checkpoint, rounded to `dtype`."""
    return reader.tensor(f"model.{logical_name}").to(dtype)


def plan_shards(model: ModelConfig, itemsize: int, max_bytes: int) -> list[list[LogicalParameter]]:
    """Parameters of each file, in the order of the forward pass; `itemsize` is bytes an element."""
    shards: list[list[LogicalParameter]] = [[]]
    size = 0
    for parameter in logical_parameters(model):
        size += parameter.numel * itemsize
        if size > max_bytes and shards[-1]:
            shards.append([])
            size = parameter.numel * itemsize
        shards[-1].append(parameter)
    return shards


def write_weights(directory: Path, model: ModelConfig, read: parity.Read, job: ExportJob) -> None:
    """model.safetensors; or, where it would be larger than `job.max_shard_bytes`, shards and their index."""
    dtype = DTYPES[job.dtype]
    shards = plan_shards(model, dtype.itemsize, job.max_shard_bytes)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        placed, size = _write_shard(directory / file, model, shard, read, dtype)
        weight_map |= placed
        total += size
    if len(shards) > 1:
        _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_shard(
    path: Path, model: ModelConfig, shard: Sequence[LogicalParameter], read: parity.Read, dtype: torch.dtype
) -> tuple[dict[str, str], int]:
    """One safetensors file, one logical tensor in memory at a time: tensor name -> file name, and their bytes."""
    shapes = {
        name: part.shape
        for parameter in shard
        for name, part in names.to_hf(parameter.name, torch.empty(parameter.shape, device="meta"), model).items()
    }
    parts = (names.to_hf(parameter.name, read(parameter.name), model).items() for parameter in shard)
    size = write_file(path, shapes, dtype, itertools.chain.from_iterable(parts))
    return dict.fromkeys(shapes, path.name), size


def check_weights(directory: Path, model: ModelConfig, read: parity.Read) -> int:
    """Read every written weight back, compare it bit for bit with the checkpoint's, and count the elements.

    Logits see a wrong table but not a wrong row of the embedding that the probe does not use; this sees every weight.
    """
    written = WeightFiles(directory)
    for parameter in logical_parameters(model):
        if not torch.equal(names.from_hf(parameter.name, written.tensor, model), read(parameter.name)):
            raise Mismatch(f"{parameter.name} was not written as the checkpoint holds it")
    return sum(written.tensor(name).numel() for name in written.names())


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
