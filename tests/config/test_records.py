"""The record of a run that a checkpoint keeps: every bit there and back, and no other shape taken for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tinyllama_mcore.config import records
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import RunConfig


def stored(run: RunConfig) -> dict[str, Any]:
    """The record as a file gives it back."""
    return json.loads(json.dumps(records.to_plain(run), allow_nan=False))


def test_a_run_survives_its_record(make_run: Callable[..., RunConfig]) -> None:
    """Equal to the last bit of its floats, with tuples where there were tuples."""
    run = make_run("--lr", "0.1234567890123456789", "--data-path", "1", "a", "2", "b", gpu=False, judge=False)
    again = records.from_plain(RunConfig, stored(run), "run.json")
    assert again == run
    assert again.data.blend[0][0].hex() == (1 / 3).hex()
    assert again.notes == run.notes


def put(path: str, value: object) -> Callable[[dict[str, Any]], object]:
    """A change of one value in a record."""
    *blocks, key = path.split(".")

    def change(plain: dict[str, Any]) -> None:
        for block in blocks:
            plain = plain[block]
        plain[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("layout.pipeline", 2), "run.json: layout: unknown key 'pipeline'"),
        (put("data.split", [99, 1]), "run.json: data: split: expected 3 values, got 2"),
        (put("data.split", "99,1,0"), "run.json: data: split: got '99,1,0'"),
        (put("data.blend", [[1.0, 7]]), "run.json: data: blend[0][1] must be a string, got 7"),
        (put("compile", 1), "run.json: compile must be true or false, got 1"),
        (put("sharding.deepspeed", []), "run.json: sharding: deepspeed: got []"),
        (put("model", None), "run.json: model: expected an object {...}, got None"),
        (lambda plain: plain.pop("recipe"), "run.json: the key 'recipe' is missing"),
    ],
)
def test_a_record_of_another_shape_is_refused(
    make_run: Callable[..., RunConfig], change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    """A checkpoint of another version says which key it does not share."""
    plain = stored(make_run())
    change(plain)
    with pytest.raises(ConfigError) as told:
        records.from_plain(RunConfig, plain, "run.json")
    assert expected in str(told.value)


def test_differences_have_dotted_names() -> None:
    """Leaves alone, lists as one value, None where one side has no such name."""
    before = {"a": {"b": 1, "c": [1, 2]}, "same": 3, "gone": 4}
    after = {"a": {"b": 2, "c": [1, 3]}, "same": 3, "new": None, "more": {"x": 5}}
    assert records.differences(before, after) == {
        "a.b": [1, 2],
        "a.c": [[1, 2], [1, 3]],
        "gone": [4, None],
        "more.x": [None, 5],
    }
