"""A GPU's row corrected by short runs: figures that are known come back, and the runs are real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.distributed.ranks import CHECKOUT
from tinyllama_mcore.config import records
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.planning import gpus, measure, throughput
from tinyllama_mcore.planning.request import Request, run_of

SHEET = gpus.find("a100-80gb")


def speed_of(gpu: gpus.Gpu) -> measure.Trainer:
    """Runs on a GPU that gives what the planner says of it."""
    return lambda run: throughput.tokens_per_second(run, gpu)


@pytest.mark.parametrize(("host", "work", "link"), [(1.0, 1.0, 1.0), (0.6, 2.5, 1.5), (2.0, 0.3, 0.05)])
def test_figures_that_are_known_come_back(host: float, work: float, link: float) -> None:
    """Host, products and memory, and NVLink, from the speeds alone, within a thousandth."""
    true = replace(
        SHEET,
        name="here",
        host=host,
        bf16_flops=work * SHEET.bf16_flops,
        fp32_flops=work * SHEET.fp32_flops,
        hbm=work * SHEET.hbm,
        nvlink=link * SHEET.nvlink,
    )
    here = measure.Machine(name="here", memory=SHEET.memory, gpus=2)
    found, told = measure.measure("tinyllama-1.1b", SHEET, here, speed_of(true))
    for field in fields(gpus.Gpu)[1:]:
        assert getattr(found, field.name) == pytest.approx(getattr(true, field.name), rel=1e-3), field.name
    assert len(told) == 3
    assert "unchanged" not in "".join(told)


def test_what_no_figure_explains_is_left_and_told() -> None:
    """Two GPUs faster than any link would make them; one GPU tells nothing of links."""
    here = measure.Machine(name="here", memory=SHEET.memory, gpus=2)

    def trainer(run: RunConfig) -> float:
        return throughput.tokens_per_second(run, SHEET) * (5 if run.layout.world_size == 2 else 1)

    found, told = measure.measure("tinyllama-1.1b", SHEET, here, trainer)
    assert found == replace(SHEET, name="here")
    assert [("unchanged" in line) for line in told] == [False, False, True]
    alone, told = measure.measure("tinyllama-1.1b", SHEET, replace(here, gpus=1), trainer)
    assert (alone.nvlink, len(told)) == (SHEET.nvlink, 2)


def test_the_largest_micro_batch_that_fits_is_trained() -> None:
    """And a GPU that holds none is told so before anything runs."""
    seen: list[int] = []

    def trainer(run: RunConfig) -> float:
        seen.append(run.batch.micro_batch_size)
        return throughput.tokens_per_second(run, SHEET)

    small = measure.Machine(name="small", memory=39.5 * gpus.GIB, gpus=1)
    measure.measure("tinyllama-1.1b", SHEET, small, trainer)
    assert seen == [1, 8]
    with pytest.raises(ConfigError, match=r"needs 20\.\d GiB, and a plan may fill 7\.4 of tiny; name a smaller"):
        measure.measure("tinyllama-1.1b", SHEET, replace(small, name="tiny", memory=10 * gpus.GIB), trainer)


def test_a_run_is_the_trainers_own(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, on a CPU, by the command that a plan prints; one that fails is a message."""
    monkeypatch.chdir(CHECKOUT)
    monkeypatch.setattr(sys, "executable", str(python))
    batch = ("--global-batch-size", "4", "--micro-batch-size", "2")
    run = run_of(Request(recipe="tinyllama-debug", world_size=1, given=batch), ["--deepspeed_config", measure.CONFIG])
    assert measure.train(run) > 0
    with pytest.raises(ConfigError, match="exit code 1 of torchrun"):
        measure.train(replace(run, batch=replace(run.batch, seq_length=10**6)))


def test_a_file_is_read_as_a_row(tmp_path: Path) -> None:
    """What was written comes back; a person's slip is one message."""
    path = tmp_path / "here.json"
    path.write_text(json.dumps(records.to_plain(SHEET)))
    assert gpus.find(str(path)) == SHEET
    path.write_text(json.dumps(records.to_plain(replace(SHEET, network=0))))
    with pytest.raises(ConfigError, match=r"network must be above 0, got 0"):
        gpus.find(str(path))
    path.write_text(json.dumps(records.to_plain(SHEET) | {"hmb": 1.0}))
    with pytest.raises(ConfigError, match=r"unknown key 'hmb'; did you mean hbm\?"):
        gpus.find(str(path))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("here.txt", "name a .json file in a directory that can be written"),
        ("absent/here.json", "name a .json file in a directory that can be written"),
        ("here.json", "--measure needs a GPU, and torch finds none here"),
    ],
)
def test_a_mistake_is_one_message(file: str, message: str, tmp_path: Path) -> None:
    """Exit code 2 before anything is trained, and no file."""
    argv = ("--gpu", "h100", "--world-size", "8", "--measure", str(tmp_path / file))
    done = subprocess.run(
        [sys.executable, "tools/plan_layout.py", *argv],
        cwd=CHECKOUT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
