"""`tools/plan_layout.py` and `--dry-run` as programs: what they print, their exit codes, no need of torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.ranks import CHECKOUT
from tinyllama_mcore.config import recipes, records
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.rules.rule import About

# Runs a program where third parties cannot be imported.
BARE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {*sys.stdlib_module_names, "tinyllama_mcore"}:
            raise ImportError(name + " is not in the standard library")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    """A program of the checkout, with nothing but the standard library."""
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", BARE, *argv]
    return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)


def test_a_plan(tmp_path: Path) -> None:
    """A table, the reasons, the command; the JSON holds every run."""
    out = tmp_path / "plan.json"
    argv = ("--gpu", "h100", "--world-size", "8", "--deepspeed_config", "ds_configs/zero3.json", "--json", str(out))
    done = run("tools/plan_layout.py", *argv, "--explain", "tp=2,recompute=none")
    assert done.returncode == 0, done.stderr
    assert "tokens/s/GPU" in done.stdout
    assert "needs ZeRO 2 or less" in done.stdout
    assert "--tensor-model-parallel-size 2" in done.stdout.splitlines()[-2]
    found = json.loads(out.read_text())
    assert found["chosen"]["command"] in done.stdout
    assert {"fitting", "too_large", "illegal", "gpu"} < set(found)
    assert sum(found["fitting"][0]["memory_by_part"].values()) == pytest.approx(found["fitting"][0]["memory_bytes"])


def test_a_plan_in_float8(tmp_path: Path) -> None:
    """Fused layers in bf16 alone, as the trainer takes it, and faster than without."""
    argv = ("--gpu", "h100", "--world-size", "1", "--deepspeed_config", "ds_configs/zero1.json", "--top", "1")
    done = [run("tools/plan_layout.py", *argv, *more) for more in ((), ("--fp8-recipe", "rowwise_with_gw_hp"))]
    assert [d.returncode for d in done] == [0, 0], done
    command = next(line for line in done[1].stdout.splitlines() if line.startswith("command"))
    assert "--fp8-recipe rowwise_with_gw_hp" in command
    assert "--compile" not in command
    plain, narrow = (float(d.stdout.split("speed ")[1].split(" tokens")[0].replace(",", "")) for d in done)
    assert narrow > 1.15 * plain


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--gpu", "a100", "--world-size", "8"), "--gpu a100 is ambiguous: a100-40gb or a100-80gb"),
        (
            ("--gpu", "a100-40gb", "--world-size", "8", "--fp8-recipe", "rowwise_with_gw_hp"),
            "--fp8-recipe rowwise_with_gw_hp: a100-40gb does not multiply in float8; leave it out",
        ),
        (("--gpu", "tpu", "--world-size", "8"), "--gpu tpu is not in the table; known: a100-40gb"),
        (("--gpu", "h100", "--world-size", "4097"), "--world-size 4097 must be from 1 to 4096"),
        (("--gpu", "h100", "--world-size", "two"), "a whole number, at least 1; got 'two'"),
        (("--gpu", "h100"), "required: --world-size"),
        (("--gpu", "h100", "--world-size", "8", "--recipe", "tinylama-1.1b"), "did you mean tinyllama-1.1b?"),
        (("--gpu", "h100", "--world-size", "8", "--seq-length", "9999"), "is longer than the 2048 positions"),
        (("--gpu", "h100", "--world-size", "8", "--json", "/proc/x"), "--json /proc/x: cannot be written"),
    ],
)
def test_a_mistake_is_one_message(argv: tuple[str, ...], message: str) -> None:
    """Exit code 2, no traceback."""
    done = run("tools/plan_layout.py", *argv, "--deepspeed_config", "ds_configs/zero0.json")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


TRAIN = ("examples/pretrain_tinyllama.py", "--deepspeed_config", "ds_configs/zero3.json", "--recipe", "tinyllama-1.1b")


def test_a_dry_run_tells_the_plan_and_what_is_missing(tmp_path: Path) -> None:
    """For a world of its own, without its data: exit code 0, and nothing is made."""
    save = str(CHECKOUT / "setup.py" / "run")  # not a directory
    absent = ("--data-path", str(tmp_path / "text"), "--save", save, "--tokenizer-model", str(tmp_path / "t"))
    done = run(*TRAIN, "--dry-run", "--world-size", "16", "--attention-backend", "flash", *absent)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].startswith("world        16 = tensor parallel 1 x data parallel 16")
    assert "1,100,048,384 parameters" in lines[1]
    assert [line.split(": ")[0] for line in lines if line.startswith("not here")] == [
        f"not here     --data-path {tmp_path / 'text'}",
        f"not here     --tokenizer-model {tmp_path / 't'}",
        f"not here     --save {save}",
    ]
    assert any(line.startswith("memory       18.1") for line in lines)
    assert any(line.startswith("on           a100-40gb: fits") for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dry-run", "--world-size", "6", "--tensor-model-parallel-size", "4"), "needs a multiple of 4 processes"),
        (("--dry-run", "--world-size", "16", "--pipeline-model-parallel-size", "2"), "needs ZeRO 2 or less"),
        (("--world-size", "16"), "--world-size 16 is only for --dry-run"),
    ],
)
def test_a_dry_run_refuses_what_a_start_would(flags: tuple[str, ...], message: str) -> None:
    """And a start does not take the world from a flag."""
    done = run(*TRAIN, *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_dry_run_opens_the_data_that_are_there(corpus: list[str], tmp_path: Path) -> None:
    """The vocabulary is then theirs, and what they forbid is refused."""
    argv = ("--deepspeed_config", "ds_configs/zero1.json", "--dry-run", "--data-path", *corpus)
    program = [sys.executable, "examples/pretrain_tinyllama.py", *argv, "--recipe"]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}

    def start(recipe: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*program, recipe], cwd=CHECKOUT, env=environment, capture_output=True, text=True)

    told = start("tinyllama-debug")
    assert told.returncode == 0, told.stderr
    assert "vocabulary 509;" in told.stdout
    assert "vocab_size 32,000 exceeds the tokenizer's 509 pieces" in start("tinyllama-1.1b").stdout
    recipe = records.to_plain(recipes.load("tinyllama-debug"))
    recipe["model"]["vocab_size"] = 508
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    refused = start(str(tmp_path / "recipe.json"))
    assert refused.returncode == 2
    assert f"has 509 pieces, but recipe {tmp_path / 'recipe.json'} has vocab_size 508" in refused.stderr


def test_only_what_another_machine_may_have_is_told_and_not_refused() -> None:
    """A rule that a plan has to obey is not about files."""
    assert {rule.name for rule in legality.RULES if rule.about is About.FILES} == {
        "each prefix has its two files",
        "the tokenizer is there",
        "the save directory can be written",
        "--load holds a checkpoint",
    }
