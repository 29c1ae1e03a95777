"""A Llama, Qwen-2 or Qwen-3 of Hugging Face -> a checkpoint at iteration 0, which `--load` takes in any layout.

It is built beside its place with a recipe for the trainer, checked there (every weight read back, logits), and renamed
at the end.
Neighbours: `names` has the layout of each tensor, `config` refuses what no model of ours is, `checkpoint.writer`
writes, `parity` compares; `commands.convert_from_hf` is the command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch

from tinyllama_mcore.checkpoint import layout, writer
from tinyllama_mcore.checkpoint.manifest import Manifest, Provenance, RunState
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config import recipes, records
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.parameters import logical_parameters
from tinyllama_mcore.config.rules.model import MODEL_RULES, with_vocab_size
from tinyllama_mcore.config.schema import ModelConfig, RunConfig
from tinyllama_mcore.config.tokenizer_types import HUGGING_FACE, SENTENCEPIECE
from tinyllama_mcore.data import tokenizer_files
from tinyllama_mcore.data.tokenizer_content import OtherKind
from tinyllama_mcore.hf import families, names, parity, rounding
from tinyllama_mcore.hf.config import from_hf_config
from tinyllama_mcore.hf.output import built_beside, refuse_taken
from tinyllama_mcore.hf.parity import Mismatch, Parity, standalone_run
from tinyllama_mcore.hf.weights import WeightFiles

RECIPE = "recipe.json"
"""Beside the checkpoint: what `--recipe` takes."""
TOKENIZERS = (SENTENCEPIECE, HUGGING_FACE)
"""Files of a tokenizer; the first that is there counts. An export that has both was trained with the first."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""The two matrices that a tied model has as one."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was written."""

    checkpoint: Path
    model: ModelConfig
    parameters: int
    updates: int
    """Updates that Adam's moments have seen; 0: they start at zero."""
    parity: Parity | None
    """None where the logits were not compared."""
    recipe: Path
    """File for `--recipe`."""
    tokenizer: Path | None
    """What data have to be made with; None: no tokenizer that is read here lies beside the model."""
    numbers_of: str
    """Recipe whose optimizer, batch and precision the file has, because a model does not state them."""


class Weights(Protocol):
    """Tensors by Hugging Face name: `WeightFiles`, or what another trainer saved."""

    def names(self) -> frozenset[str]:
        """Every tensor's name."""

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor. ConfigError where there is none of that name."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What another trainer saved of a run."""

    tensors: Mapping[str, Weights]
    """By kind: "model", and Adam's moments "exp_avg" and "exp_avg_sq" where there are any."""
    updates: int
    """Updates that the moments have seen: what the bias correction counts."""


def import_hf(source: Path, directory: Path, saved: Saved | None = None, *, verify: bool = True) -> Imported:
    """Write the weights of the model in `source` as `directory`/iter_0000000, in fp32.

    Args:
        source: directory with config.json, safetensors, and tokenizer.model or tokenizer.json where there is one.
        directory: where the checkpoint goes; may exist if it is empty.
        saved: in place of the safetensors.
        verify: compare the training model's logits with those of `transformers` before the directory appears.

    Raises:
        ConfigError: `source` is no such dense model in safetensors, or `directory` is taken or cannot be written.
        Mismatch: what was written is not the model of `source`; nothing is left behind.
    """
    refuse_taken(directory)
    model = from_hf_config(_read_config(source / "config.json"), str(source / "config.json"))
    state = saved or Saved(tensors={"model": WeightFiles(source)}, updates=0)
    run, numbers_of = _run(source, model)
    manifest = _manifest(source, run, tuple(state.tensors), state.updates)
    with built_beside(directory) as beside:
        recipe = recipes.Recipe(model=model, optimizer=run.optimizer, batch=run.batch, precision=run.sharding.precision)
        (beside / RECIPE).write_text(json.dumps(records.to_plain(recipe), indent=2) + "\n", encoding="utf-8")
        reader = _write(beside, directory, manifest, read_tensors(state, model))
        found = _compare(reader, model, source, saved) if verify else None
    return Imported(
        checkpoint=layout.folder(directory, 0),
        model=model,
        parameters=manifest.parameters,
        updates=manifest.state.updates,
        parity=found,
        recipe=directory / RECIPE,
        tokenizer=None if run.data.tokenizer_model is None else Path(run.data.tokenizer_model),
        numbers_of=numbers_of,
    )


def _run(source: Path, model: ModelConfig) -> tuple[RunConfig, str]:
    """The run that a checkpoint of this model begins, and the recipe that its numbers are of.

    Raises:
        ConfigError: the trainer would refuse the model, or its tokenizer has more pieces than the model rows.
    """
    known = _tokenizer(source)
    run = standalone_run(model, tokenizer_model=None if known is None else str(known.path.resolve()))
    for rule in MODEL_RULES:
        if not rule.holds(run):
            raise ConfigError(f"{source / 'config.json'}: this model cannot be trained here: {rule.message(run)}")
    if known is not None:
        with_vocab_size(run, known.vocab_size, str(known.path))
    name, nearest = recipes.nearest(model)
    return replace(run, sharding=replace(run.sharding, precision=nearest.precision)), name


def _tokenizer(source: Path) -> tokenizer_files.Identity | None:
    """The tokenizer beside a model; None where none lies there that is read here. ConfigError where it is broken."""
    file = next((source / name for name in TOKENIZERS if (source / name).is_file()), None)
    try:
        return None if file is None else tokenizer_files.identity(file)
    except OtherKind:
        return None


def _manifest(source: Path, run: RunConfig, kinds: tuple[str, ...], updates: int) -> Manifest:
    """What the checkpoint says of itself, but its files."""
    known = _tokenizer(source)
    return Manifest(
        state=RunState(updates=updates),
        run=records.to_plain(run),
        provenance=Provenance(
            versions={name: version(name) for name in ("torch", "safetensors")},
            imported_from=str(source),
            imported_tokenizer=None if known is None else known.sha256,
        ),
        parameters=sum(parameter.numel for parameter in logical_parameters(run.model)),
        kinds=kinds,
    )


def _write(beside: Path, directory: Path, manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> CheckpointReader:
    """The checkpoint, every element of it read back."""
    try:
        reader = CheckpointReader(writer.save_alone(beside, tensors, manifest))
    except writer.SaveFailed as error:
        raise ConfigError(f"--output {directory} cannot be written: {error}") from error
    for key, tensor in tensors.items():
        if not torch.equal(reader.tensor(key), tensor):
            raise Mismatch(f"{key} was not written as the model holds it")
    return reader


def _compare(reader: CheckpointReader, model: ModelConfig, source: Path, saved: Saved | None) -> Parity:
    """The training model's logits from the checkpoint against those of `transformers`, one model at a time.

    `transformers` reads `source` by itself, or takes what was saved by the names that it has.
    """
    tokens = parity.probe_tokens(model)
    weights = None if saved is None else saved.tensors["model"]
    given = None if weights is None else {name: weights.tensor(name) for name in weights.names()}
    theirs = parity.load_model(source, given)
    expected = parity.model_logits(theirs, tokens)
    rounded = rounding.of_fp32(theirs, tokens, expected)
    del theirs, given
    made = parity.megatron_logits(model, lambda name: reader.tensor(f"model.{name}"), tokens)
    what = "the training model's logits differ from those of the model that was imported"
    return parity.check(made, expected, rounded, what)


def read_tensors(saved: Saved, model: ModelConfig) -> dict[str, torch.Tensor]:
    """`<kind>.<logical name>` -> whole tensor, fp32. ConfigError: see `_of_kind`."""
    return {key: tensor for kind, files in saved.tensors.items() for key, tensor in _of_kind(kind, files, model)}


def _of_kind(kind: str, files: Weights, model: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a kind, by its key in the checkpoint.

    Raises:
        ConfigError: a tensor is missing, is of another shape, or has no place in such a model (a bias, an adapter).
    """
    known = {*names.hf_names(model), *_saved_twice(files, model)}
    foreign = sorted(name for name in files.names() - known if "rotary_emb.inv_freq" not in name)
    if foreign:
        raise ConfigError(
            f"the model has {len(foreign)} tensors that a dense {families.of_model(model).architecture} of its "
            f"config.json lacks, the first: {foreign[0]}"
        )
    for parameter in logical_parameters(model):
        tensor = names.from_hf(parameter.name, files.tensor, model).float()
        if tensor.shape != parameter.shape:
            raise ConfigError(
                f"{', '.join(names.row_of(parameter.name)[1])}: shape {list(tensor.shape)} together, but config.json "
                f"implies {list(parameter.shape)}"
            )
        yield f"{kind}.{parameter.name}", tensor


def _saved_twice(files: Weights, model: ModelConfig) -> tuple[str, ...]:
    """The head of a model whose head is its embedding, where the files have it all the same.

    Raises:
        ConfigError: the two differ; transformers would take one and leave the other.
    """
    if model.untie_embeddings_and_output_weights or HEAD not in files.names():
        return ()
    if not torch.equal(files.tensor(HEAD), files.tensor(EMBEDDING)):
        raise ConfigError(
            f"config.json says tie_word_embeddings true, but {HEAD} is not {EMBEDDING}: write false there to import "
            "both, or remove the one that is not meant"
        )
    return (HEAD,)


def _read_config(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): --input must be a Hugging Face model directory"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
