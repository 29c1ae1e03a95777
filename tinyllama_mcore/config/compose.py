"""A run made in Python: a recipe, a DeepSpeed JSON, and the fields that differ. `cli` makes one of a command line.

`tinyllama_mcore.run.train` takes the result. Neighbours: `schema` documents every field, `recipes` holds the numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from tinyllama_mcore.config import recipes
from tinyllama_mcore.config.deepspeed.document import Document
from tinyllama_mcore.config.deepspeed.key import Settled
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.flags import wrong_value
from tinyllama_mcore.config.given import data_of, optimizer_beside
from tinyllama_mcore.config.records import from_plain, to_plain
from tinyllama_mcore.config.schema import (
    CheckpointConfig,
    DataConfig,
    Float8Config,
    LayoutConfig,
    LoopConfig,
    RunConfig,
)
from tinyllama_mcore.config.strict_json import did_you_mean

Block = TypeVar("Block")
BLOCKS = ("model", "optimizer", "batch", "layout", "data", "checkpoint", "loop", "float8")
"""Fields of a run that are dataclasses and may be given."""
MONITORS = {"tensorboard_dir": "tensorboard", "csv_dir": "csv_monitor", "wandb": "wandb"}
"""Field of the loop -> block of the JSON that gives it."""


def compose(recipe: str, deepspeed: str, **changes: Any) -> RunConfig:  # noqa: ANN401  a block's fields, or a value
    """The run of a recipe, sharded by a DeepSpeed JSON, with some of its fields changed.

    Args:
        recipe: a name of `recipes.RECIPES`, or the path of a recipe file.
        deepspeed: the path of the JSON, or a name such as zero1. What it says of the batch and the optimizer holds;
            "auto" is filled in.
        changes: by name of a field of `RunConfig`: for a block (`model`, `optimizer`, `batch`, `layout`, `data`,
            `checkpoint`, `loop`, `float8`) a dict of its fields, for others the value.

    Raises:
        ConfigError: a field does not exist, is of another type, out of the range of its flag, or has another value in
            the JSON; or recipe or JSON cannot be read.
    """
    for name, given in (("recipe", recipe), ("deepspeed", deepspeed)):
        if not isinstance(given, str):
            raise ConfigError(f"{name} must be a string, a name or a path, got {given!r}")
    blocks: dict[str, Any] = {name: dict(value) for name, value in changes.items() if isinstance(value, Mapping)}
    known = recipes.load(recipe)
    document = Document.read(deepspeed)
    monitors = document.monitors()
    fixed = document.given() | {field: (MONITORS[field], value) for field, value in monitors.items()}

    def block(name: str, start: Block) -> Block:
        """A block with the fields that the JSON and the caller give."""
        fields = {field.name for field in dataclasses.fields(start)}  # type: ignore[arg-type]
        asked = blocks.pop(name, {})
        for field, (key, value) in fixed.items():
            if field in asked and field in fields and to_plain(asked[field]) != to_plain(value):
                raise ConfigError(f"{name}.{field} is {asked[field]}, but {key} of {deepspeed} is {value}; change one")
        given = {field: value for field, (_, value) in fixed.items() if field in fields}
        return _changed(start, name, _known(name, fields, given | asked))

    beside = optimizer_beside(blocks.get("optimizer", {}), known.optimizer)
    model, optimizer = block("model", known.model), block("optimizer", beside)
    batch, layout = block("batch", known.batch), block("layout", LayoutConfig(world_size=1))
    micro_batches = batch.num_micro_batches(layout.data_parallel_size)
    _, precision = fixed.get("precision", ("", known.precision))
    run = RunConfig(
        recipe=recipe,
        model=model,
        optimizer=optimizer,
        batch=batch,
        layout=layout,
        sharding=document.resolve(
            Settled(model=model, optimizer=optimizer, batch=batch, precision=precision, num_micro_batches=micro_batches)
        ),
        data=data_of(block("data", DataConfig(blend=())), given=changes.get("data", ())),
        checkpoint=block("checkpoint", CheckpointConfig()),
        loop=block("loop", LoopConfig(**monitors)),
        float8=block("float8", Float8Config()),
    )
    rest = {name: value for name, value in changes.items() if not isinstance(value, Mapping)} | blocks
    own = {field.name for field in dataclasses.fields(run) if not dataclasses.is_dataclass(getattr(run, field.name))}
    return _changed(run, "run", _known("", own, rest))


def _changed(start: Block, name: str, values: Mapping[str, Any]) -> Block:
    """`start` with other values of some fields, each of its field's type."""
    plain = {field.name: to_plain(getattr(start, field.name)) for field in dataclasses.fields(start)}  # type: ignore[arg-type]
    changed = from_plain(type(start), plain | {field: to_plain(value) for field, value in values.items()}, name)
    if problem := wrong_value(changed):
        raise ConfigError(f"{name}: {problem}")
    return changed


def _known(block: str, fields: set[str], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """`given`. ConfigError where it names what is not a field."""
    for name in given:
        where = f"{block}.{name}" if block else name
        if not block and name in BLOCKS:
            raise ConfigError(f"{name} is a block of a run: give a dict of its fields, got {given[name]!r}")
        if name not in fields:
            raise ConfigError(f"{where} is not a field of a run{did_you_mean(str(name), fields)}")
    return given
