"""What is built from the tree, and that it works elsewhere: an sdist, a wheel of it, a fresh environment."""

from __future__ import annotations

import configparser
import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import tinyllama_mcore
from tests.distributed import ranks
from tinyllama_mcore.commands.table import COMMANDS

SOURCES = ("tinyllama_mcore", "tools", "examples", "tests", "findings", "docs", "ds_configs")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
"""What the build finds, in a copy, as it writes beside it."""
HOOKS = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
"""What `python -m build` calls: the hooks of PEP 517, the wheel from the unpacked sdist."""
EXTRAS = ["gpu", "hopper", "wandb", "eval", "data", "remote", "s3", "dev"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source distribution and wheel."""
    home = tmp_path_factory.mktemp("built")
    for name in SOURCES:
        shutil.copytree(ranks.CHECKOUT / name, home / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ranks.CHECKOUT / name, home / "tree" / name)
    _hook("build_sdist", home, home / "tree")
    (source,) = home.glob("*.tar.gz")
    with tarfile.open(source) as packed:
        packed.extractall(home)  # our own; its argument `filter` came with Python 3.11.4
    _hook("build_wheel", home, home / source.name.removesuffix(".tar.gz"))
    (wheel,) = home.glob("*.whl")
    return source, wheel


def _hook(name: str, out: Path, tree: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HOOKS, name, str(out)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _of_the_package() -> set[str]:
    """Every file of the package's directory."""
    package = ranks.CHECKOUT / "tinyllama_mcore"
    found = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ranks.CHECKOUT).as_posix() for path in found}


def test_the_wheel_is_the_package_and_no_more(built: tuple[Path, Path]) -> None:
    """The JSONs, the page of the report and py.typed are in it; tests, findings, tools and docs are not."""
    with zipfile.ZipFile(built[1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        for name in held:
            assert wheel.read(name) == (ranks.CHECKOUT / name).read_bytes()
    assert held == _of_the_package()
    for name in ("py.typed", "ds_configs/zero3.json", "reporting/template/page.html", "__main__.py"):
        assert f"tinyllama_mcore/{name}" in held


def test_the_source_distribution_builds_the_wheel_and_no_more(built: tuple[Path, Path]) -> None:
    """Apart from what setuptools writes itself."""
    with tarfile.open(built[0]) as packed:
        names = {member.name.partition("/")[2] for member in packed.getmembers() if member.isfile()}
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or name.startswith("tinyllama_mcore.egg-info/")}
    assert names - made == _of_the_package() | set(FILES)


def test_the_metadata_are_the_trees(built: tuple[Path, Path]) -> None:
    """Version, commands and extras; every requirement is pinned in constraints.txt, or is an extra of few machines."""
    with zipfile.ZipFile(built[1]) as wheel:
        info = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(wheel.read(info))
        scripts = configparser.ConfigParser(delimiters="=")
        scripts.read_string(wheel.read(info.replace("METADATA", "entry_points.txt")).decode())
    assert metadata["Version"] == tinyllama_mcore.__version__
    assert metadata.get_all("Provides-Extra") == EXTRAS
    assert dict(scripts["console_scripts"]) == {command.program: command.entry for command in COMMANDS}
    pinned = set(re.findall(r"^([\w.-]+)==", (ranks.CHECKOUT / "constraints.txt").read_text(), flags=re.MULTILINE))
    needed = [re.split(r"[<>=;\[ ]", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {name.replace("-", "_") for name in needed} <= {name.replace("-", "_") for name in pinned}


@pytest.fixture(scope="module")
def environment(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a fresh environment: the wheel, and behind it the libraries of this one without this tree."""
    home = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(built[1])], check=True)
    paths = {"base": str(home), "platbase": str(home)}
    here = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    (here / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return home / "bin"


def run(environment: Path, home: Path, *words: str, code: int = 0) -> str:
    """A command of the fresh environment in `home`; its output."""
    path = {"PATH": f"{environment}:{os.environ['PATH']}"}
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(environment / words[0]), *words[1:]], cwd=home, env=others | path, capture_output=True, text=True
    )
    assert done.returncode == code, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_an_installed_wheel_does_the_whole_job(environment: Path, corpus_tokenizer: Path, tmp_path: Path) -> None:
    """Text to a dataset, a run, its resume by two ranks with matrices cut in two, a page, Hugging Face and back."""
    where = run(environment, tmp_path, "python", "-c", "import tinyllama_mcore; print(tinyllama_mcore.__file__)")
    assert Path(where.strip()).is_relative_to(environment.parent)
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": f"{n} texts " * 99}) + "\n" for n in range(200)))
    tokenizer = ("--tokenizer-model", str(corpus_tokenizer))
    words = ("tinyllama-preprocess", "--input", "raw.jsonl", "--output-prefix", "mine", "--append-eod", *tokenizer)
    run(environment, tmp_path, *words)
    torchrun = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    train = ("--deepspeed_config", "zero1", *tokenizer)
    train += ("--data-path", "mine_text_document", "--recipe", "tinyllama-debug", "--lr-warmup-iters", "1")
    train += ("--train-iters", "4", "--save", "saved", "--metrics-file", "metrics.jsonl")
    run(environment, tmp_path, "tinyllama-pretrain", *train, "--exit-interval", "2")
    two = (*torchrun, "-m", "tinyllama_mcore", "pretrain", *train, "--tensor-model-parallel-size", "2")
    resumed = run(environment, tmp_path, *two)
    assert "resuming     from saved/iter_0000002" in resumed
    assert len(ranks.metrics(tmp_path / "metrics.jsonl")) == 4
    run(environment, tmp_path, "tinyllama-report", "metrics.jsonl", "--output", "report.html")
    assert "restart in another layout" in (tmp_path / "report.html").read_text()
    run(environment, tmp_path, "tinyllama-merge", "--load", "saved", "--output", "hf")
    run(environment, tmp_path, "tinyllama-import", "--input", "hf", "--output", "imported")
    assert "whole, " in run(environment, tmp_path, "tinyllama-verify", "--load", "imported")
    refused = run(environment, tmp_path, "tinyllama-pretrain", "--deepspeed_config", "ds_configs/zero3.json", code=2)
    assert refused.endswith("no such file; the JSON that comes with tinyllama_mcore is named zero3\n")
