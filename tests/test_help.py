"""What `--help` says of every flag of every tool is what holds where the flag is not given.

A flag says its default at the end of its help. A default that the parser holds is compared with what is said; one that
is filled in later is asked of the code that fills it in; words are held by a test that is named here.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tinyllama_mcore.config import cli, flags, recipes
from tinyllama_mcore.config.schema import ConfigError, DataConfig, RunConfig
from tinyllama_mcore.planning import request
from tinyllama_mcore.preprocessing.preprocess import PreprocessJob
from tinyllama_mcore.preprocessing.presets import PRESETS
from tinyllama_mcore.preprocessing.readers import DEFAULT_KEY, STARCODER_KEY
from tools import inspect_data, preprocess_data

TESTS = Path(__file__).parent
TOOLS = sorted(path.stem for path in (TESTS.parent / "tools").glob("*.py"))
SAID = re.compile(r"\(default: (.*)\)$|^default: (.*)$", re.DOTALL)
NOTHING = re.compile(r"(off|do not|none|not written|nothing is kept|refuse it)\b")
"""How the default is said of a flag that changes nothing where it is not given."""


def _refuses_a_missing_path() -> bool:
    with pytest.raises(ConfigError, match="--data-path is missing"):
        inspect_data.parse(["--sample", "0"])
    return True


def _plain_job() -> PreprocessJob:
    return preprocess_data.parse(["--input", "i", "--output-prefix", "o", "--tokenizer-model", "m"])


FILLED_IN: dict[tuple[str, str], tuple[str, Callable[[], object]]] = {
    ("inspect_data", "--data-path"): ("else it has to be given", _refuses_a_missing_path),
    ("inspect_data", "--split"): (
        "else {}",
        lambda: ",".join(f"{share:g}" for share in DataConfig(blend=()).split),
    ),
    ("inspect_data", "--seq-length"): ("else {}", lambda: recipes.load(inspect_data.RECIPE).batch.seq_length),
    ("inspect_data", "--seed"): ("else {}", lambda: RunConfig.seed),
    ("inspect_data", "--data-cache-path"): ("beside each prefix", lambda: DataConfig(blend=()).cache_dir is None),
    ("inspect_data", "--limit"): (
        "{}",
        lambda: inspect_data.parse(["--search", "x", "--data-path", "P"])[0].limit,
    ),
    ("preprocess_data", "--dataset-split"): ("{}", lambda: {next(iter(p.splits)) for p in PRESETS.values()}.pop()),
    ("preprocess_data", "--json-keys"): (
        f"the preset's, else {{}}; in Parquet and Arrow without one: {STARCODER_KEY}",
        lambda: DEFAULT_KEY if _plain_job().json_keys == (DEFAULT_KEY,) else "another one",
    ),
    ("preprocess_data", "--exclude-set"): ("the preset's, else none", lambda: not _plain_job().exclude_sets),
    ("plan_layout", "--deepspeed_config"): ("those of {}/", lambda: request.SHIPPED),
}
"""Flags without a default in the parser -> what is said, and the value that stands in it or True."""

PROVED: dict[tuple[str, str], tuple[str, str]] = {
    ("inspect_data", "--tokenizer-model"): (
        "else the one that the data's receipt names",
        "reporting/test_inspect_data.py::test_the_tool",
    ),
    ("inspect_data", "--iteration"): (
        "the newest that is whole",
        "checkpoint/test_checkpoint.py::test_newest_is_by_number",
    ),
    ("convert_from_hf", "--tag"): ("`latest`", "hf/test_deepspeed_native.py::test_every_element_bit_for_bit"),
    ("convert_from_hf", "--no-verify"): ("compare", "hf/test_importing.py"),
    ("merge_to_hf", "--no-verify"): ("compare", "hf/test_export.py"),
    ("merge_to_hf", "--iteration"): ("the newest", "checkpoint/test_checkpoint.py::test_newest_is_by_number"),
    ("merge_to_hf", "--tokenizer-model"): (
        "the one that the run was given",
        "hf/test_export.py::test_the_tokenizer_has_to_be_the_runs_own",
    ),
    ("verify_checkpoint", "--iteration"): (
        "all",
        "checkpoint/test_verify_checkpoint.py::test_each_checkpoint_has_a_line",
    ),
    ("benchmark", "--config"): ("ZeRO 1, 2, 3 and FSDP of ds_configs/", "benchmarking/test_benchmark.py"),
    ("plan_layout", "--measure"): ("by the data sheet", "planning/test_measure.py"),
    ("plan_layout", "--global-batch-size"): ("the recipe's", "planning/test_search.py"),
    ("plan_layout", "--seq-length"): ("the recipe's", "planning/test_search.py"),
    ("plan_layout", "--explain"): ("the best of all", "planning/test_search.py"),
}
"""Flags whose default is a way to go about it -> what is said, and the test that holds it."""


class _Made(Exception):
    """The parser is made, and that is all."""


def parser_of(tool: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a tool makes."""
    made: list[argparse.ArgumentParser] = []

    def parse_args(self: argparse.ArgumentParser, *_: object) -> None:
        made.append(self)
        raise _Made

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(_Made):
        importlib.import_module(f"tools.{tool}").main(["--help"])
    return made[0]


def _optional(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if action.option_strings and "--help" not in action.option_strings and not action.required:
            yield action


@pytest.mark.parametrize("tool", TOOLS)
def test_every_default_that_is_said_is_used(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every flag that may be left out."""
    actions = list(_optional(parser_of(tool, monkeypatch)))
    monkeypatch.undo()
    for action in actions:
        flag = (tool, action.option_strings[0])
        found = SAID.search(action.help or "")
        assert found, f"{flag} does not say its default: {action.help}"
        said = found[1] or found[2]
        if flag in FILLED_IN:
            words, used = FILLED_IN[flag]
            value = used()
            assert value and words.format(value) in said, (flag, said, value)
        elif flag in PROVED:
            words, where = PROVED[flag]
            file, _, name = where.partition("::")
            assert words in said and f"def {name or 'test_'}" in (TESTS / file).read_text(), (flag, said)
        elif action.default is None or action.default is False or action.default in ([], ""):
            assert NOTHING.match(said), (flag, said)
        else:
            value = f"{action.default:g}" if isinstance(action.default, float) else str(action.default)
            assert said in (value, "%(default)s") or re.split(r"[,;:]", said)[0] == value, (flag, said)


def test_every_row_of_the_tables_is_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is left behind by a flag that went."""
    known = set()
    for tool in TOOLS:
        known |= {(tool, action.option_strings[0]) for action in _optional(parser_of(tool, monkeypatch))}
        monkeypatch.undo()
    assert set(FILLED_IN) | set(PROVED) <= known


def test_every_number_that_the_trainers_help_says_is_used() -> None:
    """Where a default is a value, it is the one of a run without the flag; off and none change nothing."""
    argv = ["--deepspeed_config", str(TESTS.parent / "ds_configs/zero1.json"), "--recipe", "tinyllama-debug"]
    run = cli.parse(argv, world_size=1, has_gpu=lambda: False)
    parts = (run, run.data, run.layout, run.checkpoint, run.loop)
    compared = 0
    for flag in flags.flags():
        name = flag.name[2:].replace("-", "_")
        used = next((getattr(part, name) for part in parts if hasattr(part, name)), None)
        said = flag.said_default.split(":")[0]
        if re.match(r"[\d.,]+$", said):
            value = ",".join(f"{share:g}" for share in used) if isinstance(used, tuple) else f"{used:g}"
            assert value == said, (flag.name, said, used)
            compared += 1
        elif NOTHING.match(said) and said != "none: it has to be given":
            assert not used or used == said, (flag.name, said, used)
    assert compared > 10
