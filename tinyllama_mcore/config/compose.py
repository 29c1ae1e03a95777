"""Where a run is put together: a recipe, a DeepSpeed JSON, and the fields that differ.

`compose` is for programs: `tinyllama_mcore.run.train` takes its result. `assembled` puts together what `compose` and
the command line (`cli`) ask for. Neighbours: `schema` documents every field, `recipes` holds the numbers, `given` says
what follows from which fields were given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tinyllama_mcore.config import recipes
from tinyllama_mcore.config.data_config import DataConfig
from tinyllama_mcore.config.deepspeed.document import Document
from tinyllama_mcore.config.deepspeed.key import Settled
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.flags import wrong_value
from tinyllama_mcore.config.given import data_of, optimizer_beside
from tinyllama_mcore.config.loop_config import CheckpointConfig, LoopConfig
from tinyllama_mcore.config.records import from_plain, to_plain
from tinyllama_mcore.config.schema import (
    BatchConfig,
    Float8Config,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from tinyllama_mcore.config.strict_json import did_you_mean

Block = TypeVar("Block")
Changes = Mapping[str, Any]
"""By name of a field of `RunConfig`: of a block a mapping of its fields, of others the value."""
BLOCKS: dict[str, type] = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "batch": BatchConfig,
    "layout": LayoutConfig,
    "data": DataConfig,
    "checkpoint": CheckpointConfig,
    "loop": LoopConfig,
    "float8": Float8Config,
}
"""Fields of a run that are dataclasses and may be changed."""
MONITORS = {"tensorboard_dir": "tensorboard", "csv_dir": "csv_monitor", "wandb": "wandb"}
"""Field of the loop -> block of the JSON that gives it."""


class Clash(NamedTuple):
    """A field that is asked for, and that the JSON gives differently."""

    block: str
    field: str
    asked: Any
    key: str
    """Path of the key that gives it."""
    fixed: Any


def compose(recipe: str, deepspeed: str, **changes: Any) -> RunConfig:  # noqa: ANN401  a block's fields, or a value
    """The run of a recipe, sharded by a DeepSpeed JSON, with some of its fields changed.

    Args:
        recipe: a name of `recipes.RECIPES`, or the path of a recipe file.
        deepspeed: the path of the JSON, or a name such as zero1. What it says of the batch and the optimizer holds;
            "auto" is filled in.
        changes: by name of a field of `RunConfig`: for a block (`model`, `optimizer`, `batch`, `layout`, `data`,
            `checkpoint`, `loop`, `float8`) a dict of its fields, for others the value.

    Raises:
        ConfigError: a field does not exist, is of another type, out of the range of its flag, has no effect, or has
            another value in the JSON; or recipe or JSON cannot be read.
    """
    for name, given in (("recipe", recipe), ("deepspeed", deepspeed)):
        if not isinstance(given, str):
            raise ConfigError(f"{name} must be a string, a name or a path, got {given!r}")
    known, document = recipes.load(recipe), Document.read(deepspeed)
    for block, field, asked, key, fixed in clashes(changes, document):
        raise ConfigError(f"{block}.{field} is {asked}, but {key} of {deepspeed} is {fixed}; change one")
    return assembled(recipe, known, document, changes)


def clashes(changes: Changes, document: Document) -> Iterator[Clash]:
    """What the changes and the JSON give differently. A directory has several spellings."""
    for name, field, key, fixed in _fixed(document):
        block = changes.get(name)
        if isinstance(block, Mapping) and field in block and not _same(block[field], fixed):
            yield Clash(name, field, block[field], key, fixed)


def assembled(name: str, recipe: recipes.Recipe, document: Document, changes: Changes) -> RunConfig:
    """The run of a recipe of this name, with what the JSON fixes, and over both the changes, which do not clash.

    Raises:
        ConfigError: a change is of no field, of another type, out of the range of its flag, or has no effect.
    """
    _refuse_unknown(changes)
    fixed: dict[str, dict[str, Any]] = {block: {} for block in BLOCKS}
    for of, field, _, value in _fixed(document):
        fixed[of][field] = value

    def block(of: str, start: Block) -> Block:
        return _changed(start, of, fixed[of] | dict(changes.get(of, {})))

    beside = optimizer_beside(changes.get("optimizer", {}), recipe.optimizer)
    model, optimizer = block("model", recipe.model), block("optimizer", beside)
    batch, layout = block("batch", recipe.batch), block("layout", LayoutConfig(world_size=1))
    settled = Settled(
        model=model,
        optimizer=optimizer,
        batch=batch,
        precision=document.given().get("precision", ("", recipe.precision))[1],
        num_micro_batches=batch.num_micro_batches(layout.data_parallel_size),
    )
    run = RunConfig(
        recipe=name,
        model=model,
        optimizer=optimizer,
        batch=batch,
        layout=layout,
        sharding=document.resolve(settled),
        data=data_of(block("data", DataConfig(blend=())), given=changes.get("data", ())),
        checkpoint=block("checkpoint", CheckpointConfig()),
        loop=block("loop", LoopConfig()),
        float8=block("float8", Float8Config()),
    )
    return _changed(run, "run", {field: value for field, value in changes.items() if field not in BLOCKS})


def _fixed(document: Document) -> Iterator[tuple[str, str, str, Any]]:
    """(block, field, key, value) of each field of a block that the JSON gives."""
    given = document.given() | {field: (MONITORS[field], value) for field, value in document.monitors().items()}
    for field, (key, value) in given.items():
        yield from ((name, field, key, value) for name, kind in BLOCKS.items() if field in _fields(kind))


def _fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _same(one: object, other: object) -> bool:
    if isinstance(one, str) and isinstance(other, str):  # the texts that a JSON gives are directories
        return Path(one).resolve() == Path(other).resolve()
    return bool(to_plain(one) == to_plain(other))


def _changed(start: Block, name: str, values: Mapping[str, Any]) -> Block:
    """`start` with other values of some fields: of the field's type, and what is new one that a flag would take."""
    plain = {field.name: to_plain(getattr(start, field.name)) for field in dataclasses.fields(start)}  # type: ignore[arg-type]
    changed = from_plain(type(start), plain | {field: to_plain(value) for field, value in values.items()}, name)
    new = {field for field in values if getattr(changed, field) != getattr(start, field)}
    if problem := wrong_value(changed, new):
        raise ConfigError(f"{name}: {problem}")
    return changed


def _refuse_unknown(changes: Changes) -> None:
    """ConfigError where a change names what is not a field, or a block is no mapping."""
    own = _fields(RunConfig) - {*BLOCKS, "sharding"}
    for name, value in changes.items():
        if name not in {*own, *BLOCKS}:
            raise ConfigError(f"{name} is not a field of a run{did_you_mean(name, {*own, *BLOCKS})}")
        if name not in BLOCKS:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is a block of a run: give a dict of its fields, got {value!r}")
        for field in value:
            if field not in (fields := _fields(BLOCKS[name])):
                raise ConfigError(f"{name}.{field} is not a field of a run{did_you_mean(str(field), fields)}")
