"""What `--help` says of every flag of every tool is what holds where the flag is not given.

A flag says its default at the end of its help. A default that the parser holds is compared with what is said; one that
is filled in later is asked of the code that fills it in; words are held by a test that is named here.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tinyllama_mcore.commands import inspect_data, preprocess_data
from tinyllama_mcore.config import cli, flags, recipes
from tinyllama_mcore.config.deepspeed import shipped
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import DataConfig, RunConfig
from tinyllama_mcore.planning import request
from tinyllama_mcore.preprocessing.documents import DEFAULT_KEY, STARCODER_KEY
from tinyllama_mcore.preprocessing.preprocess import PreprocessJob
from tinyllama_mcore.preprocessing.presets import PRESETS

TESTS = Path(__file__).parent
TOOLS = sorted(path.stem for path in (TESTS.parent / "tools").glob("*.py"))
DEBUG = recipes.load("tinyllama-debug")
LAUNCHED = 2
"""Processes that the launcher says."""
SAID = re.compile(r"\(default: (.*)\)$|^default: (.*)$", re.DOTALL)
NOTHING = re.compile(r"(off|do not|none|not written|nothing is kept|refuse)\b")
"""How the default is said of a flag that changes nothing where it is not given."""


def _refuses_a_missing_path() -> bool:
    with pytest.raises(ConfigError, match="--data-path is missing"):
        inspect_data.parse(["--sample", "0"])
    return True


def _planned() -> list[str]:
    return [base.run.sharding.source for base in request.bases(request.Request(recipe="tinyllama-1.1b", world_size=1))]


def _plain_job() -> PreprocessJob:
    return preprocess_data.parse(["--input", "i", "--output-prefix", "o", "--tokenizer-model", "m"])


FILLED_IN: dict[tuple[str, str], tuple[str, Callable[[], object]]] = {
    ("inspect_data", "--data-path"): ("it has to be given", _refuses_a_missing_path),
    ("inspect_data", "--split"): (
        "{}; with --load the run's",
        lambda: ",".join(f"{share:g}" for share in DataConfig(blend=()).split),
    ),
    ("inspect_data", "--seq-length"): ("else {}", lambda: recipes.load(inspect_data.RECIPE).batch.seq_length),
    ("inspect_data", "--seed"): ("{}; with --load the run's", lambda: RunConfig.seed),
    ("inspect_data", "--data-cache-path"): ("beside each prefix", lambda: DataConfig(blend=()).cache_dir is None),
    ("inspect_data", "--limit"): (
        "{}",
        lambda: inspect_data.parse(["--search", "x", "--data-path", "P"])[0].limit,
    ),
    ("preprocess_data", "--dataset-split"): ("{}", lambda: {next(iter(p.splits)) for p in PRESETS.values()}.pop()),
    ("preprocess_data", "--json-keys"): (
        f"the preset's, else {{}}; for Parquet and Arrow files without a column text: {STARCODER_KEY}",
        lambda: DEFAULT_KEY if _plain_job().json_keys == (DEFAULT_KEY,) else "another one",
    ),
    ("preprocess_data", "--exclude-set"): ("the preset's, else none", lambda: not _plain_job().exclude_sets),
    ("plan_layout", "--deepspeed_config"): (
        "all that come with the package",
        lambda: set() < set(_planned()) <= set(shipped.names()),
    ),
}
"""Flags without a default in the parser -> what is said, and the value that stands in it or True."""

PROVED: dict[tuple[str, str], tuple[str, str]] = {
    ("inspect_data", "--tokenizer-model"): (
        "else the one that the data's receipt names",
        "reporting/test_inspect_data.py::test_the_tool",
    ),
    ("inspect_data", "--iteration"): (
        "the newest undamaged one",
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
    ("evaluate", "--iteration"): ("the newest", "checkpoint/test_checkpoint.py::test_newest_is_by_number"),
    ("evaluate", "--tokenizer-model"): (
        "the one that the run was given",
        "hf/test_export.py::test_the_tokenizer_has_to_be_the_runs_own",
    ),
    ("evaluate", "--no-verify"): ("compare", "hf/test_export.py"),
    ("evaluate", "--device"): (
        "cuda where there is a GPU, else cpu",
        "evaluation/test_command.py::test_the_device_is_a_gpu_where_there_is_one",
    ),
    **{
        (tool, "--tokenizer-type"): ("by the file", "data/test_tokenizer_files.py::test_the_kind_is_the_files")
        for tool in ("import_tokens", "inspect_data", "preprocess_data", "merge_to_hf")
    },
    ("inspect_data", "--eod-token"): (
        "the data's receipt's",
        "data/test_tokenizer_files.py::test_a_receipt_says_what_ends",
    ),
    **{
        (tool, "--eod-token"): ("the tokenizer names", "data/test_byte_level.py::test_what_ends_a_document")
        for tool in ("import_tokens", "preprocess_data")
    },
    ("merge_to_hf", "--eod-token"): ("the run's", "hf/test_byte_level.py"),
    ("verify_checkpoint", "--iteration"): (
        "all",
        "checkpoint/test_verify_checkpoint.py::test_each_checkpoint_has_a_line",
    ),
    ("benchmark", "--config"): ("on a CPU zero1", "benchmarking/test_benchmark.py"),
    ("plan_layout", "--measure"): ("by the data sheet", "planning/test_measure.py"),
    ("plan_layout", "--global-batch-size"): ("the recipe's", "planning/test_search.py"),
    ("plan_layout", "--seq-length"): ("the recipe's", "planning/test_search.py"),
    ("plan_layout", "--explain"): ("of all", "planning/test_search.py"),
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
        getattr(importlib.import_module(f"tools.{tool}"), tool)(["--help"])
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


WITHOUT_A_VALUE: dict[str, tuple[str, Callable[[RunConfig], bool]]] = {
    "--recipe": ("tinyllama-debug without", lambda run: run.recipe == "tinyllama-debug"),
    "--world-size": ("the launcher's", lambda run: run.layout.world_size == LAUNCHED),
    "--data-path": ("the built-in sample corpus", lambda run: run.data.blend == ()),
    "--data-path-from": (
        "one blend from the first iteration to the last",
        lambda run: run.data.later_blends == (),
    ),
    "--valid-data-path": (
        "the second part of --split",
        lambda run: not run.data.valid_blend and run.data.split[1] > 0,
    ),
    "--tokenizer-model": ("the one that the data's receipt names", lambda run: run.data.tokenizer_model is None),
    "--tokenizer-type": ("by the file", lambda run: run.data.tokenizer_type is None),
    "--eod-token": ("the data's receipt's, else the tokenizer's own", lambda run: run.data.eod_token is None),
    "--vocab-size": ("the recipe's", lambda run: run.model.vocab_size == DEBUG.model.vocab_size),
    "--data-cache-path": ("beside each prefix", lambda run: run.data.cache_dir is None),
    "--seq-length": ("the recipe's", lambda run: run.batch.seq_length == DEBUG.batch.seq_length),
    "--micro-batch-size": ("the recipe's", lambda run: run.batch.micro_batch_size == DEBUG.batch.micro_batch_size),
    "--global-batch-size": ("the recipe's", lambda run: run.batch.global_batch_size == DEBUG.batch.global_batch_size),
    "--rampup-batch-size": ("the recipe's", lambda run: run.batch.rampup_batch_size is None),
    "--train-iters": ("the recipe's", lambda run: run.batch.train_iters == DEBUG.batch.train_iters),
    "--lr": ("the recipe's", lambda run: run.optimizer.lr == DEBUG.optimizer.lr),
    "--min-lr": ("the recipe's", lambda run: run.optimizer.min_lr == DEBUG.optimizer.min_lr),
    "--lr-warmup-iters": ("the recipe's", lambda run: run.optimizer.lr_warmup_iters == DEBUG.optimizer.lr_warmup_iters),
    "--lr-decay-iters": ("else --train-iters", lambda run: run.optimizer.lr_decay_iters is None),
    "--lr-wsd-decay-iters": ("WSD needs it", lambda run: run.optimizer.lr_wsd_decay_iters is None),
    "--pipeline-num-layers": ("as even as possible", lambda run: run.layout.pipeline_num_layers is None),
    "--fp8-recipe": ("none: they are computed in bf16", lambda run: run.float8.recipe is None),
    "--cuda-graph": ("on where it is possible", lambda run: run.cuda_graph is None),
    "--tp-comm-overlap": ("on where it is possible", lambda run: run.tp_comm_overlap is None),
    "--save": ("no checkpoint is written", lambda run: run.checkpoint.save is None),
    "--load": ("--save, if it holds a checkpoint", lambda run: run.checkpoint.load is None),
    "--iteration": ("the newest undamaged one", lambda run: run.checkpoint.iteration is None),
    "--metrics-file": ("not written", lambda run: run.loop.metrics_file is None),
    "--tensorboard-dir": ("not written", lambda run: run.loop.tensorboard_dir is None),
    "--profile": ("no iteration is profiled", lambda run: run.loop.profile is None),
    "--profile-dir": ("not written", lambda run: run.loop.profile_dir is None),
}
"""Flags of the trainer for which the schema has no value -> words of the help, and whether a run without them is so."""

OF_NO_FIELD = {
    "--deepspeed_config": "none: it has to be given",
    "--dry-run": "off",
    "--local_rank": "not used",
    "--train-tokens": "--train-iters x --global-batch-size x --seq-length",
    "--no-load": "off",
}
"""Flags of the trainer that go into no field -> how the words of their default begin."""


def _as_said(value: object) -> str:
    """A value of the schema as a reader would write it on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(f"{each:g}" for each in value) if isinstance(value, tuple) else str(value).removesuffix(".0")


def test_the_trainers_help_shows_the_schemas_default_of_every_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--help` as it is printed, beside the schema's dataclasses and beside a run that was given no flag."""
    monkeypatch.setenv("COLUMNS", "400")  # or argparse breaks lines at hyphens
    with pytest.raises(SystemExit):
        flags.read(["--help"])
    blocks = re.split(r"^  (?=--)", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    shown = {re.split(r"[ ,\n]", block)[0]: " ".join(block.split("\n\n")[0].split()) for block in blocks}
    argv = ["--deepspeed_config", str(TESTS.parent / "ds_configs/zero1.json"), "--recipe", "tinyllama-debug"]
    run = cli.parse(argv, world_size=LAUNCHED, has_gpu=lambda: False)
    parts = {type(part): part for part in (run, *vars(run).values())}
    assert list(shown) == [flag.name for flag in flags.flags()]
    seen = set()
    for flag in flags.flags():
        said = re.search(r" \(default: (.*)\)$", shown[flag.name])
        assert said, shown[flag.name]
        if flag.kind is None:
            assert said[1].startswith(OF_NO_FIELD[flag.name])
            continue
        default = {field.name: field.default for field in dataclasses.fields(flag.kind)}[flag.target]
        if default in (None, (), dataclasses.MISSING):
            words, holds = WITHOUT_A_VALUE[flag.name]
            assert words in said[1] and holds(run), flag.name
            seen.add(flag.name)
        else:
            assert said[1].split("; ")[0] == _as_said(default), flag.name
            assert getattr(parts[flag.kind], flag.target) == default, flag.name
    assert seen == set(WITHOUT_A_VALUE)


def test_a_default_and_its_words_stand_once() -> None:
    """Where a field has the words of its flag, the row has none."""
    for flag in flags.flags():
        if flag.kind is not None:
            annotation = typing.get_type_hints(flag.kind, include_extras=True)[flag.target]
            assert hasattr(annotation, "__metadata__") != bool(flag.words), flag.name


@pytest.mark.parametrize("default", [3, 4])
def test_a_changed_default_is_shown(default: int) -> None:
    """The planted fault of these tests: the help follows the field, whatever stands in it."""
    kind = dataclasses.make_dataclass("Kind", [("few", typing.Annotated[int, "so many"], default)])
    parser = flags.Parser()
    flags.add(parser, flags.Flag("--few", kind))
    assert f"--few N so many (default: {default})" in " ".join(parser.format_help().split())
    assert parser.parse_args([]).few is None
    assert parser.parse_args(["--few", "5"]).few == 5
