"""A flag of several values that is given twice: a tool has all of them, the trainer says that the last one counts."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable
from pathlib import Path

import tinyllama_mcore
from tinyllama_mcore.commands.preprocess_data import FLAGS
from tinyllama_mcore.config.schema import RunConfig

PACKAGE = Path(tinyllama_mcore.__file__).parent
MANY = ("+", "*")


def named_calls(tree: ast.AST) -> list[ast.Call]:
    """Calls of `add_argument` for a flag that takes several values."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    return [
        call
        for call in calls
        if call.args
        and isinstance(call.args[0], ast.Constant)
        and str(call.args[0].value).startswith("--")
        and any(k.arg == "nargs" and isinstance(k.value, ast.Constant) and k.value.value in MANY for k in call.keywords)
    ]


def test_every_tool_adds_up() -> None:
    """Whatever parser a flag stands in."""
    found = [call for path in PACKAGE.rglob("*.py") for call in named_calls(ast.parse(path.read_text()))]
    assert len(found) > 2
    for call in found:
        (action,) = [k.value for k in call.keywords if k.arg == "action"]
        assert isinstance(action, ast.Constant) and action.value == "extend", ast.unparse(call)
    for name, options in FLAGS:
        assert options.get("nargs") not in MANY or options["action"] == "extend", name


def test_the_trainer_says_that_the_last_one_counts(make_run: Callable[..., RunConfig]) -> None:
    """As of every flag of one value, so that a script's command can be gone on with; but it is said."""
    run = make_run("--data-path", "a", "--data-path", "0.5", "b", "0.5", "c", judge=False)
    assert run.data.blend == ((0.5, "b"), (0.5, "c"))
    assert run.notes[-1] == "--data-path is given more than once: the last one counts"
    once = make_run("--data-path", "a", "--valid-data-path", "c", judge=False)
    assert not [note for note in once.notes if "more than once" in note]


def test_the_detector_sees_its_fault() -> None:
    """A parser without it, and what argparse then does."""
    planted = 'parser.add_argument("--input", nargs="+")'
    assert named_calls(ast.parse(planted))
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", nargs="+")
    assert parser.parse_args(["--input", "a", "--input", "b"]).input == ["b"]
