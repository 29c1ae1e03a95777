"""A package that is not installed ends every command with one message and exit code 2; preflight makes it a finding.

One process, a fork that has most of them made, makes all imports of other people's packages. For each case a child of
it forgets this package's own modules and the one of the case, and starts the command: minutes of imports are made once.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools

from tests.distributed import ranks
from tests.raw_files import write_rows
from tests.test_architecture import PACKAGE, Module, imports, is_within, read
from tinyllama_mcore.commands.table import COMMANDS
from tinyllama_mcore.config import packages

RUNNER = """
import importlib, json, os, sys
sys.executable, sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[3], sys.argv[2], False  # compiled once
cases, codes = json.load(open(sys.argv[1])), open(f"{sys.argv[2]}/codes", "w")
for name in sorted({case["package"] for case in cases} | {"torch", "deepspeed", "transformers", "megatron.core"}):
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # s3fs, wandb: absent here anyway
from tinyllama_mcore.engine import deepspeed_engine  # and through it what is below packages
for number, case in enumerate(cases):
    child = os.fork()
    if child == 0:
        for name in [name for name in sys.modules if name.split(".")[0] in ("tinyllama_mcore", case["package"])]:
            del sys.modules[name]
        sys.modules[case["package"]] = None
        log = os.open(f"{sys.argv[2]}/{number}", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1), os.dup2(log, 2)
        from tinyllama_mcore.commands import start
        sys.argv = [case["command"], *case["argv"]]
        code = 70
        try:
            code = getattr(start, case["command"])()
        except SystemExit as end:
            code = end.code
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=codes, flush=True)
"""


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    """The package's files by name."""
    return {module.name: module for module in read(ranks.CHECKOUT) if is_within(module.name, PACKAGE)}


def _at_once(module: Module) -> Iterator[str]:
    """What a file imports as it is imported itself."""
    for node in module.tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (name for alias in node.names for name in (f"{node.module}.{alias.name}", node.module or ""))


def _needed_at_once(start: str, modules: dict[str, Module]) -> set[str]:
    """Other people's packages that importing a file imports."""
    seen, left, foreign = set[str](), [start], set[str]()
    while left:
        name = left.pop()
        if name in seen or name not in modules:
            continue
        seen.add(name)
        found = list(_at_once(modules[name]))
        left += found
        foreign |= {each.split(".")[0] for each in found} - {PACKAGE, *sys.stdlib_module_names}
    return foreign


def _later(home: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Command, package, arguments that come to where the package is imported late."""
    write_rows(home / "rows.jsonl", [{"text": "a"}])
    for name, text in (("rows.parquet", "PAR1"), ("rows.txt", "a"), ("run.jsonl", "")):
        (home / name).write_text(text)
    sample = ["--output-prefix", str(home / "out"), "--tokenizer-model", "none.model", "--input"]
    yield "preprocess_data", "fsspec", [*sample, "s3://bucket/rows.jsonl"]
    yield "preprocess_data", "s3fs", [*sample, "s3://bucket/rows.jsonl"]
    yield "report", "matplotlib", [str(home / "run.jsonl"), "--png", str(home / "run.png")]
    for package in ("lm_eval", "accelerate"):
        yield "evaluate", package, ["--checkpoints", str(home), "--watch"]
    yield "plan_layout", "torch", ["--gpu", "h100-80gb", "--world-size", "1", "--measure", str(home / "gpu.json")]
    train = ["--deepspeed_config", "zero1", "--recipe", "tinyllama-debug", "--exit-interval", "1"]
    for package in ("torch", "numpy", "megatron", "deepspeed", "safetensors", "sentencepiece", "psutil"):
        yield "pretrain_tinyllama", package, train
    yield "pretrain_tinyllama", "tensorboard", [*train, "--tensorboard-dir", str(home / "board")]
    wandb = home / "wandb.json"
    wandb.write_text(json.dumps({"zero_optimization": {"stage": 1}, "wandb": {"enabled": True}}))
    yield "pretrain_tinyllama", "wandb", ["--deepspeed_config", str(wandb), *train[2:]]
    yield "preflight", "psutil", []
    yield "preflight", "torch", []


@pytest.mark.slow
def test_every_command_tells_every_package_that_it_misses(
    modules: dict[str, Module], python: Path, tmp_path: Path
) -> None:
    """Each package that a command imports at once, and what is imported later, by arguments that come to it."""
    cases = [
        (command.file, package, list[str]())
        for command in COMMANDS
        for package in sorted(_needed_at_once(command.module, modules))
    ]
    assert {"sentencepiece", "tokenizers", "zstandard", "torch", "numpy"} <= {package for _, package, _ in cases}
    cases += _later(tmp_path)
    asked, logs = tmp_path / "cases.json", tmp_path / "logs"
    logs.mkdir()
    asked.write_text(json.dumps([dict(zip(("command", "package", "argv"), case, strict=True)) for case in cases]))
    done = subprocess.run(
        [str(python), "-c", RUNNER, str(asked), str(logs), sys.executable],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    wrong = {}
    for number, (code, (command, package, _)) in enumerate(
        zip((logs / "codes").read_text().split(), cases, strict=True)
    ):
        said = (logs / str(number)).read_text()
        told = packages.missing(package)
        last = next(iter(said.splitlines()[-1:]), "")
        as_a_row = command == "preflight" and code == "1" and f": {told}\n" in said
        if ((code != "2" or told not in last) and not as_a_row) or "Traceback" in said:
            wrong[command, package] = (code, said[-600:])
    assert not wrong, "\n".join(f"{case}: {said}" for case, said in wrong.items())


def test_every_package_has_a_row(modules: dict[str, Module]) -> None:
    """All that is imported, lazily too; and the pages that a row sends to are there."""
    foreign = {name.split(".")[0] for module in modules.values() for name in imports(module)}
    rows = {row.module: row for row in packages.PACKAGES}
    assert foreign - {PACKAGE, *sys.stdlib_module_names} <= set(rows)
    assert len(rows) == len(packages.PACKAGES)
    assert (ranks.CHECKOUT / packages.ALL.split()[0]).is_file()


def test_rows_and_setup_name_the_same_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Required ones, and each extra's."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **words: told.update(words))
    runpy.run_path(str(ranks.CHECKOUT / "setup.py"))

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>]", word)[0] for word in requirements}

    required = {row.name for row in packages.PACKAGES if row.is_required}
    assert required == names(told["install_requires"]) - {"setuptools"}
    for row in packages.PACKAGES:
        if row.extra is not None:
            assert set(row.install.split()) <= names(told["extras_require"][row.extra]), row


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("torch.nothing", f"torch.nothing is not in the torch that is installed for {sys.executable}, version "),
        ("regex", f"regex is not installed for {sys.executable}, and another package needs it: pip install regex; "),
        ("tinyllama_mcore.nothing", None),
    ],
)
def test_other_imports_that_fail(module: str, says: str | None) -> None:
    """Of a version that does not fit, of a package of a package's, and of our own, which stays a traceback."""
    said = packages.explained(ModuleNotFoundError("no", name=module))
    assert said == says if says is None or said is None else said.startswith(says)
