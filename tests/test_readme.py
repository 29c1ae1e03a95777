"""README.md keeps its word: each of its commands is run by a test, each path and link in it exists.

The commands are taken from its bash blocks as they stand. Those that no other test runs are run here, in order, in a
copy of the repository, as a reader would, but that programs find their imports made (tests/forked.py);
tests/test_package.py and tests/examples/test_demo.py start them by the real interpreter.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import shown
from tests.distributed import ranks

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COPIED = ("tinyllama_mcore", "examples", "tools", "ds_configs")
"""Directories that the commands need."""

RUN_ELSEWHERE = {
    "make test": "tests/test_readme.py::test_make_calls_what_it_says",
    "deepspeed examples/pretrain_tinyllama.py --deepspeed_config ds_configs/zero3.json --exit-interval 20": (
        "tests/distributed/test_launchers.py::test_the_bare_command_of_the_trade"
    ),
}
"""Command -> the test that runs it (this suite is what `make test` runs)."""

MAKE_TARGETS = {
    "demo": "python examples/demo.py --overwrite",
    "reproduce": "python -m examples.reproduce",
    "test": "python -m pytest -n 2 --dist loadfile",
    "test-layouts": "python -m pytest tests/distributed/test_curves.py tests/distributed/test_guards.py "
    "tests/distributed/test_keys.py tests/distributed/test_options.py tests/distributed/test_resume.py "
    "tests/examples/test_reproduce.py --all-layouts",
    "test-faults": "python -m pytest -m faults --kills 50 --ends 2 --all-layouts",
    "lint": "ruff check tinyllama_mcore tools examples tests setup.py",
    "format": "ruff format tinyllama_mcore tools examples tests setup.py",
}
"""Target -> a line of its recipe."""


def commands() -> list[str]:
    """Every command in README's bash blocks."""
    return shown.commands("README.md")


def run_here() -> list[str]:
    """The commands that no other test runs; `make demo` as the line that it calls."""
    return [MAKE_TARGETS["demo"] if c == "make demo" else c for c in commands() if c not in RUN_ELSEWHERE]


@pytest.mark.parametrize(("command", "test"), RUN_ELSEWHERE.items())
def test_the_other_tests_exist(command: str, test: str) -> None:
    """The table names commands of README and tests that are there."""
    assert command in commands()
    path, name = test.split("::")
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("target", "line"), MAKE_TARGETS.items())
def test_make_calls_what_it_says(target: str, line: str) -> None:
    """`make -n` shows the recipe; every target of the Makefile is in the table."""
    shown = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert line in shown.stdout.splitlines()
    phony = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    assert phony[1].split() == list(MAKE_TARGETS)


def test_paths_and_links_exist() -> None:
    """Files that README names in backticks, and files that it links to."""
    named = re.findall(r"`((?:tinyllama_mcore|tools|examples|ds_configs|docs|tests)/[\w./]+)`", README)
    linked = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("https://")]
    assert len(named) > 15
    assert [path for path in [*named, *linked] if not (REPOSITORY / path).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_run_as_they_stand(python: Path, tmp_path: Path) -> None:
    """In a copy of the repository: all succeed, and the last one leaves a checkpoint."""
    checkout = tmp_path / "checkout"
    for folder in COPIED:
        shutil.copytree(REPOSITORY / folder, checkout / folder)
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": str(checkout)}
    for command in run_here():
        words = ["/usr/bin/env", *shlex.split(command)]  # which looks in that PATH
        done = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    for path in ("demo/loss.png", "demo/report.html", "demo/hf/model.safetensors", "mine/hf/config.json"):
        assert (checkout / "runs" / path).is_file()
    assert len(ranks.metrics(checkout / "runs/mine/metrics.jsonl")) == 30
    assert "restart in another layout" in (checkout / "runs/mine/report.html").read_text()
    assert any((checkout / "runs/mine/from_hf").iterdir())
