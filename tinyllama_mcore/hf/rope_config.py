"""The rotary positions of a config.json, in every spelling that transformers 5 reads, and as it reads them.

Why: base and scaling can stand in `rope_parameters`, in `rope_scaling`, or beside both, and an old name is read for a
new one. Two spellings that disagree are refused: versions of transformers would take one or the other. Neighbour:
`config` reads the rest. Seen in transformers 5.23 (`RotaryEmbeddingConfigMixin`); tests/hf/test_spellings.py compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import RopeScaling

BASE = 10000.0
"""`rope_theta` where no place names it."""
SCALING_KEYS: Mapping[str, tuple[str, ...]] = {
    "linear": ("rope_type", "factor"),
    "llama3": tuple(field.name for field in fields(RopeScaling)),
}
"""Kind of RoPE scaling -> its keys, which are RopeScaling's fields."""

_ORIGINAL = "original_max_position_embeddings"
_PLACES = ("rope_scaling", "rope_parameters")
"""Keys that hold an object with the positions: version 4's and version 5's, which reads both."""
_BESIDE: Mapping[str, tuple[str, ...]] = {
    "rope_theta": ("default", *SCALING_KEYS),
    _ORIGINAL: ("llama3",),
    "partial_rotary_factor": ("default", *SCALING_KEYS),
}
"""Keys of that object that may stand beside it instead -> the kinds of RoPE that read them."""
_OLD = {"rope_type": "type"}
"""Key of that object -> its older name."""


def read_rope(config: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling of a config.json; `where` names the file in messages. It holds `max_position_embeddings`.

    Raises:
        ConfigError: two places disagree, or say what cannot be imported.
    """
    named = [place for place in _PLACES if config.get(place)]
    found = {place: _read(place, config[place], config, where) for place in named}
    if not found:
        return _read("rope_theta", {}, config, where)
    if len(set(found.values())) > 1:
        raise ConfigError(
            f"{where}: rope_scaling is {config['rope_scaling']!r} and rope_parameters is "
            f"{config['rope_parameters']!r}, which describe different positions; remove the wrong one"
        )
    return next(iter(found.values()))


def _read(place: str, given: object, config: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """What one place says, with what stands beside it."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: {place} is {given!r}; it must be an object {{...}}")
    rope = dict(given)
    for key, old in _OLD.items():
        _take(rope, key, rope.pop(old, None), f"{where}: {place}.{key}", f"{place}.{old}")
    kind = rope.setdefault("rope_type", "default")
    for key, kinds in _BESIDE.items():
        if kind in kinds:
            _take(rope, key, config.get(key), f"{where}: {place}.{key}", key)
    if kind == "llama3":
        rope.setdefault(_ORIGINAL, config["max_position_embeddings"])
    base, partial = rope.pop("rope_theta", BASE), rope.pop("partial_rotary_factor", 1.0)
    if not _is_number(base) or not base > 0:
        raise ConfigError(f"{where}: rope_theta is {base!r}; it must be a number above 0, such as {BASE:g}")
    if partial != 1:
        raise ConfigError(f"{where}: partial_rotary_factor is {partial!r}; only 1.0, the whole head, can be imported")
    return float(base), _scaling(place, rope, given, where)


def _take(rope: dict[str, Any], key: str, value: object, name: str, other: str) -> None:
    """Put `value` under `key` where nothing stands there. ConfigError where something else does."""
    if value is None:
        return
    if rope.setdefault(key, value) != value:
        raise ConfigError(f"{name} is {rope[key]!r} and {other} is {value!r}: the two must agree; remove one of them")


def _scaling(place: str, rope: dict[str, Any], given: object, where: str) -> RopeScaling | None:
    """The scaling that an object without its base says; None: RoPE as it is."""
    kind = rope["rope_type"]
    numbers = {key: value for key, value in rope.items() if key != "rope_type"}
    if kind == "default" and not numbers:
        return None
    expected = set(SCALING_KEYS.get(kind, ())) if isinstance(kind, str) else set()
    if set(rope) != expected or not all(_is_number(value) for value in numbers.values()):
        known = "; ".join(f"{name} with {', '.join(keys[1:])}" for name, keys in SCALING_KEYS.items())
        raise ConfigError(f"{where}: {place} is {given!r}; only these can be imported: unscaled RoPE, {known}")
    exact: dict[str, Any] = {key: int(value) if key == _ORIGINAL else float(value) for key, value in numbers.items()}
    return RopeScaling(rope_type=kind, **exact)


def _is_number(value: object) -> bool:
    """Whether JSON spells a number there."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
