"""Frozen dataclasses to and from plain JSON values, strictly: every key known, every value of its field's type.

Neighbours: `recipes` reads a recipe file with this, a checkpoint's manifest keeps the whole RunConfig so.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import TypeVar, Union, get_args, get_origin, get_type_hints

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.strict_json import Json, did_you_mean

Record = TypeVar("Record")

_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", type(None): "null"}


def to_plain(record: object) -> Json:
    """The record as dicts, lists, numbers and strings: what `json.dumps` writes and `from_plain` takes."""
    if dataclasses.is_dataclass(record):
        return {f.name: to_plain(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {key: to_plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_plain(value) for value in record]
    return record


def differences(before: Mapping[str, Json], after: Mapping[str, Json]) -> dict[str, list[Json]]:
    """Dotted name -> [before, after] of each value that two plain records do not share; None where one has it not."""
    one, other = dict(_leaves(before)), dict(_leaves(after))
    names = dict.fromkeys((*one, *other))
    return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}


def _leaves(plain: Json, name: str = "") -> Iterator[tuple[str, Json]]:
    """(dotted name, value) of what is no mapping; a list is one value."""
    if isinstance(plain, Mapping):
        for key, value in plain.items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, plain


def from_plain(kind: type[Record], plain: Json, where: str, *, strict: bool = True) -> Record:
    """The record of dataclass `kind` that `plain` spells.

    Args:
        kind: a dataclass whose fields are numbers, strings, booleans, tuples, mappings, None or dataclasses.
        plain: what a JSON file holds.
        where: file and key, for messages.
        strict: whether an unknown key is refused; a file of another version of this program may have some.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not of its field's type.
    """
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{where}: expected an object {{...}}, got {plain!r}")
    hints, fields = get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in plain:
        if strict and key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(key, fields)}")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in plain and not optional:
            raise ConfigError(f"{where}: the key {name!r} is missing")
    known = {key: value for key, value in plain.items() if key in fields}
    return kind(**{key: _value(hints[key], value, f"{where}: {key}", strict) for key, value in known.items()})


def _value(hint: type, value: Json, where: str, strict: bool) -> Json:
    """`value` as the type that `hint` names."""
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, where, strict=strict)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        hints = [h for h in inner if h is not type(None)]
        return None if value is None and len(hints) < len(inner) else _value(hints[0], value, where, strict)
    if origin is tuple and isinstance(value, list):
        each = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(each) == len(value):
            return tuple(_value(h, value[i], f"{where}[{i}]", strict) for i, h in enumerate(each))
        raise ConfigError(f"{where}: expected {len(each)} values, got {len(value)}: {value!r}")
    if origin is not None:
        if isinstance(value, origin):
            return value
        raise ConfigError(f"{where}: got {value!r}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where} is too large a number") from None
    if isinstance(value, hint) and not (hint is not bool and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} must be {_NAMES.get(hint, hint.__name__)}, got {value!r}")
