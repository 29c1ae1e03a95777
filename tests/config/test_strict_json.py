"""Every way in which a JSON file of a person goes wrong is told with its line, its column and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tinyllama_mcore.config import strict_json
from tinyllama_mcore.config.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{\n  "a": 1,\n}', "line 2, column 9: not JSON: a trailing comma before '}'"),
        ('{"a": [1, 2, ]}', "line 1, column 12: not JSON: a trailing comma before ']'"),
        ('{\n  // stage\n  "a": 1}', "line 2, column 3: not JSON: JSON has no comments"),
        ('{"a": 1 # one\n}', "JSON has no comments"),
        ('{"a": 1, /* two */ "b": 2}', "JSON has no comments"),
        ("{'a': 1}", "double quotes"),
        ('{"a": True}', "True is Python; JSON spells it true"),
        ('{"a": None}', "None is Python; JSON spells it null"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": 1 "b": 2}', "line 1, column 9: not JSON: expecting ',' delimiter"),
        ('{"a": 1', "not JSON"),
        ("", "not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is given twice"),
        ("[1]", "expected an object {...} at the top, found list"),
    ],
)
def test_a_broken_file_is_told_where_and_why(write_json: Callable[..., str], text: str, expected: str) -> None:
    """Line, column, hint; the file comes first."""
    path = write_json(text)
    with pytest.raises(ConfigError) as told:
        strict_json.read(path)
    assert expected in str(told.value)
    assert str(told.value).startswith(path)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    """The JSON in the same directory that the name resembles."""
    (tmp_path / "zero1.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"zero4\.json: no such file; did you mean .*zero1\.json\?"):
        strict_json.read(str(tmp_path / "zero4.json"))


def test_what_is_no_text_file(tmp_path: Path) -> None:
    """Bytes and directories are refused in words."""
    (tmp_path / "weights.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="byte 0 is not UTF-8"):
        strict_json.read(str(tmp_path / "weights.json"))
    with pytest.raises(ConfigError, match="cannot be read"):
        strict_json.read(str(tmp_path))


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Some editors write one."""
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1.5}')
    assert strict_json.read(str(tmp_path / "a.json")) == {"a": 1.5}
