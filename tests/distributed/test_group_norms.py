"""`--log-grad-norm-by-group` is what Hugging Face's model under torch's autograd has, whatever spreads the gradient."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.distributed import many, ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tests.distributed.recipe import RECIPE
from tests.distributed.test_curves import NORM

ITERATIONS = 2
MODES = [
    *(Mode(sharding=f"zero{stage}") for stage in (0, 1, 2, 3)),
    *(Mode(sharding=sharding) for sharding in ("zero3-offload", "fsdp", "fsdp-grad-op", "fsdp-hybrid")),
    Mode(sharding="zero1", tp=2, sp=True, dp=1),
    Mode(sharding="zero3", tp=2, dp=1),
    Mode(sharding="fsdp", tp=2, dp=1),
    Mode(sharding="zero1", pp=2, dp=1),
    Mode(sharding="fsdp", pp=2, vpp=2, dp=1),
    Mode(sharding="zero2", cp=2, dp=1),
]
BF16 = Mode(sharding="zero1", precision="bf16")
"""DeepSpeed's BF16_Optimizer, which no mode in fp32 has."""
PARTS = {
    r"model\.embed_tokens": "embedding",
    r"model\.layers\.(\d+)\.self_attn": "layers.{}.attention",
    r"model\.layers\.(\d+)\.mlp": "layers.{}.mlp",
    r"model\.layers\.(\d+)\..*layernorm": "layers.{}.norms",
    r"model\.norm": "final_norm",
    r"lm_head": "head",
}
"""How Hugging Face's names begin -> the group."""


def _argv(mode: Mode, home: Path, corpus: list[str], interval: int = 1) -> list[str]:
    given = [*flags(mode, home, corpus), "--metrics-file", str(home / "metrics.jsonl"), "--log-grad-norm-by-group"]
    return [*given, "--exit-interval", str(ITERATIONS), "--log-interval", str(interval)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Path:
    """A directory of the metrics of every mode, by its name; `rarely` logs each second iteration."""
    home = tmp_path_factory.mktemp("by_group")
    given = [(str(mode), _argv(mode, home / str(mode), corpus)) for mode in (*MODES, BF16)]
    given.append(("rarely", _argv(MODES[0], home / "rarely", corpus, interval=2)))
    assert many.train(given, home / "ranks") == {}
    return home


def _found(runs: Path, mode: object) -> list[dict]:
    return ranks.metrics(runs / str(mode) / "metrics.jsonl")


@pytest.fixture(scope="module")
def right(corpus: list[str]) -> list[dict[str, float]]:
    """Group -> norm, of each iteration, of Hugging Face's model under torch."""
    from tests.distributed.reference import MODEL, reference_model, reference_steps

    model, found = reference_model(MODEL), []

    def note(_: int) -> None:
        squares: dict[str, float] = defaultdict(float)
        for name, parameter in model.named_parameters():
            (group,) = (form.format(*m.groups()) for start, form in PARTS.items() if (m := re.match(start, name)))
            squares[group] += float(parameter.grad.double().square().sum())
        found.append({group: math.sqrt(square) for group, square in squares.items()})

    list(itertools.islice(reference_steps(corpus, model=model, on_gradient=note), ITERATIONS))
    return found


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_norms_are_those_of_autograd(mode: Mode, runs: Path, right: list[dict[str, float]]) -> None:
    """Every group within 1e-5 relative, clipping at work; their squares add up."""
    records = _found(runs, mode)
    assert len(records) == ITERATIONS
    assert max(record["grad_norm"] for record in records) > RECIPE["optimizer"]["clip_grad"]
    for record, exact in zip(records, right, strict=True):
        found = record["grad_norm_by_group"]
        assert found == pytest.approx(exact, rel=NORM)
        assert math.hypot(*found.values()) == pytest.approx(record["grad_norm"], rel=NORM)


def test_in_bf16_they_are_near(runs: Path, right: list[dict[str, float]]) -> None:
    """DeepSpeed's other optimizer: their squares add up, and each is in bf16's noise."""
    record = _found(runs, BF16)[0]
    assert record["grad_norm_by_group"] == pytest.approx(right[0], rel=0.02)
    assert math.hypot(*record["grad_norm_by_group"].values()) == pytest.approx(record["grad_norm"], rel=NORM)


def test_only_where_an_interval_ends(runs: Path) -> None:
    """The other lines do not have the field."""
    assert ["grad_norm_by_group" in record for record in _found(runs, "rarely")] == [False, True]
