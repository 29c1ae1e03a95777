"""Makes documents of rows: a JSON line, the columns of a table's row, a sample of an archive.

A row that is not a document is a `BadRow`. Neighbours: `readers` gives the rows, `shard` takes the documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

DEFAULT_KEY = "text"
STARCODER_KEY = "content"
META, SET_FIELD = "meta", "redpajama_set_name"
"""Where SlimPajama's rows say which set they are of."""
SET_COLUMNS = (META, f"{META}.{SET_FIELD}")
"""The same as columns: whole, or flattened as `datasets` does."""


class Sample(NamedTuple):
    """Members of an archive that have one name but for its ending: together a row."""

    name: str
    """Without the ending."""
    text: bytes | None
    """Of its `.txt`: the field `text`, whatever the `.json` says."""
    fields: bytes | None
    """Its `.json`: an object with the other fields."""


Row = bytes | Mapping[str, Any] | Sample
"""A JSON object as it is written, the columns of a row, or members of an archive."""


class Document(NamedTuple):
    """One text, valid Unicode, and the set of RedPajama that it came from ("" where the row does not say)."""

    text: str
    set_name: str


class BadRow(ValueError):
    """A row that is no document: `kind` is what counts go by, the message says what is wrong with it."""

    def __init__(self, kind: str, message: str) -> None:
        """A kind of `BAD_ROWS`."""
        super().__init__(kind, message)
        self.kind, self.message = kind, message


BROKEN_JSON, BAD_UTF8, NO_KEY, WRONG_TYPE, SURROGATE = BAD_ROWS = (
    "broken JSON",
    "invalid UTF-8",
    "missing key",
    "wrong type",
    "lone surrogate",
)


def json_decoder() -> Callable[[bytes], Any]:
    """What parses a line: orjson where it is installed, with Python's json deciding on what it refuses."""
    try:
        import orjson
    except ImportError:
        return json.loads

    def decode(line: bytes) -> Any:  # noqa: ANN401
        try:
            return orjson.loads(line)
        except ValueError:
            return json.loads(line)

    return decode


def document(row: Row, key: str, decode: Callable[[bytes], Any]) -> Document:
    """The document of a row; `decode` is of `json_decoder`. BadRow where it has none."""
    if not isinstance(row, Sample):
        return _document(row, key, decode)
    try:
        return _document(_fields(row, decode), key, decode)
    except BadRow as error:
        apart = row.text is None and error.kind == NO_KEY and key == DEFAULT_KEY
        more = (
            f"; a {row.name}.txt has to stand next to it in the archive, as tar --sort=name lays them" if apart else ""
        )
        raise BadRow(error.kind, f"member {row.name}: {error.message}{more}") from None


def _fields(sample: Sample, decode: Callable[[bytes], Any]) -> bytes | Mapping[str, Any]:
    """The row that a sample's members are together."""
    if sample.text is None:
        return sample.fields or b""
    try:
        found = decode(sample.fields) if sample.fields is not None else {}
    except (ValueError, RecursionError) as error:
        raise BadRow(BAD_UTF8 if isinstance(error, UnicodeDecodeError) else BROKEN_JSON, str(error)) from None
    if not isinstance(found, Mapping):
        raise BadRow(WRONG_TYPE, f"a row must be an object, not {type(found).__name__}")
    return {**found, DEFAULT_KEY: sample.text}


def _document(row: bytes | Mapping[str, Any], key: str, decode: Callable[[bytes], Any]) -> Document:
    try:
        if isinstance(row, bytes):
            row = decode(row)
        if not isinstance(row, Mapping):
            raise BadRow(WRONG_TYPE, f"a row must be an object, not {type(row).__name__}")
        if key not in row:
            raise BadRow(NO_KEY, f'no key "{key}", it has {", ".join(row) or "none"}: name one with --json-keys')
        text = row[key].decode() if isinstance(row[key], bytes) else row[key]
        if not isinstance(text, str):
            raise BadRow(WRONG_TYPE, f'"{key}" must be a string, not {type(text).__name__}')
        if not text.isascii():
            text.encode()
    except UnicodeDecodeError as error:
        raise BadRow(BAD_UTF8, str(error)) from None
    except UnicodeEncodeError as error:
        raise BadRow(SURROGATE, f'"{key}" has a lone surrogate, which is not a character, at {error.start}') from None
    except BadRow:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRow(BROKEN_JSON, str(error)) from None
    return Document(text, _set_name(row, decode))


def _set_name(row: Mapping[str, Any], decode: Callable[[bytes], Any]) -> str:
    """The set of a row in every shape that it is found in: an object or struct, a map, JSON in a string, a column."""
    meta = row.get(META)
    if isinstance(meta, (str, bytes)):
        try:
            meta = decode(meta if isinstance(meta, bytes) else meta.encode())
        except (ValueError, RecursionError):
            meta = None
    if isinstance(meta, list):  # pyarrow gives a map as pairs
        meta = {pair[0]: pair[1] for pair in meta if isinstance(pair, (tuple, list)) and len(pair) == 2}
    name = (meta if isinstance(meta, Mapping) else row).get(SET_FIELD if isinstance(meta, Mapping) else SET_COLUMNS[1])
    return "" if name is None else name.decode(errors="replace") if isinstance(name, bytes) else str(name)
