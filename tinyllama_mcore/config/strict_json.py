"""A JSON file that a person wrote: read it to the letter, and say where and why it is wrong.

Neighbours: `deepspeed` and `recipes` read their files with this; `records` and `flags` share its "did you mean".
"""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from tinyllama_mcore.config.errors import ConfigError

Json: TypeAlias = Any
"""What `json.loads` returns: dict, list, str, int, float, bool or None."""

_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End of a message about an unknown word: the known one that it resembles, or a short list of all, or nothing."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(names)}" if 0 < len(names) <= 8 else ""


def read(path: str) -> dict[str, Json]:
    """The object that the file holds.

    Raises:
        ConfigError: no such file, not UTF-8, not JSON (with line, column and a hint), a key given twice, not an object.
    """
    text = _text(Path(path))

    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        for index, (key, _) in enumerate(pairs):
            if any(key == earlier for earlier, _ in pairs[:index]):
                raise ConfigError(f"{path}: the key {key!r} is given twice in one object; keep one of the two")
        return dict(pairs)

    def not_json(word: str) -> NoReturn:
        raise ConfigError(f"{path}: {word} is not a JSON number; write a finite one")

    def finite(word: str) -> float:
        if not math.isfinite(number := float(word)):
            raise ConfigError(f"{path}: {word} is too large a number; the largest is {sys.float_info.max:.2g}")
        return number

    def whole(word: str) -> int:
        finite(word)
        return int(word)

    try:
        document = json.loads(
            text, object_pairs_hook=unique, parse_constant=not_json, parse_float=finite, parse_int=whole
        )
    except json.JSONDecodeError as error:
        position, hint = _diagnose(text, error)
        line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
        raise ConfigError(f"{path}, line {line}, column {column}: not JSON: {hint}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected an object {{...}} at the top, found {type(document).__name__}")
    return document


def _text(path: Path) -> str:
    """The file's characters, whatever its byte-order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        beside = [str(p) for p in path.parent.glob("*.json")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file{did_you_mean(str(path), beside)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8 text; is this a JSON file?") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _diagnose(text: str, error: json.JSONDecodeError) -> tuple[int, str]:
    """Where the mistake stands, and what it probably is."""
    before, rest = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    if before.endswith(",") and rest[:1] in ("}", "]"):
        return len(before) - 1, f"a trailing comma before {rest[0]!r}; remove the comma"
    if rest.startswith(",") and rest[1:].lstrip()[:1] in ("}", "]"):  # where Python 3.13 points to
        return error.pos, f"a trailing comma before {rest[1:].lstrip()[0]!r}; remove the comma"
    if rest.startswith(("//", "#", "/*")):
        return error.pos, "JSON has no comments; remove it"
    if rest.startswith("'"):
        return error.pos, 'strings and keys take double quotes, "like this"'
    for python, spelling in _PYTHON_WORDS.items():
        if rest.startswith(python):
            return error.pos, f"{python} is Python; JSON spells it {spelling}"
    return error.pos, error.msg[0].lower() + error.msg[1:]
