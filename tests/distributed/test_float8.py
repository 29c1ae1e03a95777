"""Products in float8 over two ranks: every way to shard learns what one process learns, and a run can go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import many, ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tests.distributed.recipe import RECIPE, SHOWN

FLOAT8 = ("--fp8-recipe", "rowwise_with_gw_hp")
SAMPLED = RECIPE | {"model": RECIPE["model"] | {"ffn_hidden_size": 192}}
"""The small model with sizes that 16 divides on two ranks."""
ALIKE = [Mode(sharding=sharding, precision="bf16") for sharding in ("zero1", "zero2", "zero3", "fsdp")]
"""The same products of the same rows as in one process."""
CUT = [
    Mode(sharding="zero1", tp=2, dp=1, precision="bf16"),
    Mode(sharding="fsdp", tp=2, sp=True, dp=1, precision="bf16"),
    Mode(sharding="zero1", pp=2, vpp=2, dp=1, precision="bf16"),
    Mode(sharding="zero1", cp=2, dp=1, precision="bf16"),
]
"""Tensor parallel ranks round rows of their own part."""
ENDS = ("--exit-interval", str(SHOWN))
Curve = list[tuple[float, float]]


def argv(mode: Mode, home: Path, corpus: list[str], *more: str) -> list[str]:
    """The command line of a mode with the sizes of this file."""
    return [*flags(mode, home, corpus, SAMPLED), "--metrics-file", str(home / "metrics.jsonl"), *more]


def curve(home: Path) -> Curve:
    """(loss, gradient norm) of each iteration."""
    return [(record["lm_loss"], record["grad_norm"]) for record in ranks.metrics(home / "metrics.jsonl")]


def apart(one: Curve, other: Curve) -> float:
    """The largest difference of a loss."""
    return max(abs(a - b) for (a, _), (b, _) in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def alone(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Curve]:
    """Curves of one process: in bf16, in float8, and in float8 with layers that are left out."""
    home, curves = tmp_path_factory.mktemp("alone"), {}
    mode = Mode(sharding="zero1", dp=1, precision="bf16")
    left_out = ("--num-layers-at-start-in-bf16", "1", "--num-layers-at-end-in-bf16", "2")
    for name, more in (("bf16", ()), ("float8", FLOAT8), ("one layer", (*FLOAT8, *left_out))):
        ranks.pretrain(argv(mode, home / name, corpus, *ENDS, *more), world_size=1, logs=home / name / "logs")
        curves[name] = curve(home / name)
    return curves


@pytest.fixture(scope="module")
def spread(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[Mode, Curve]:
    """The curve in float8 of every mode."""
    home = tmp_path_factory.mktemp("spread")
    runs = [(str(mode), argv(mode, home / str(mode), corpus, *ENDS, *FLOAT8)) for mode in (*ALIKE, *CUT)]
    assert many.train(runs, home) == {}
    return {mode: curve(home / str(mode)) for mode in (*ALIKE, *CUT)}


def test_float8_rounds_and_little_else(alone: dict[str, Curve]) -> None:
    """Another curve than bf16's, near it; one layer in float8 is nearer than four."""
    whole, part = apart(alone["float8"], alone["bf16"]), apart(alone["one layer"], alone["bf16"])
    assert 0 < part < whole < 2e-2
    assert alone["float8"][0][1] == pytest.approx(alone["bf16"][0][1], rel=2e-2)


@pytest.mark.parametrize("mode", [*ALIKE, *CUT], ids=str)
def test_every_layout_learns_the_same(mode: Mode, alone: dict[str, Curve], spread: dict[Mode, Curve]) -> None:
    """Within twice the bound of bf16: a sum in another order, then rounded to a coarser number."""
    assert apart(spread[mode], alone["float8"]) < 1e-2
    assert spread[mode][0][1] == pytest.approx(alone["float8"][0][1], rel=1e-2)


def test_a_run_goes_on_in_float8(corpus: list[str], tmp_path: Path) -> None:
    """Stopped after five iterations and gone on, recomputing or not: the same losses to the bit."""
    mode = Mode(sharding="zero1", dp=1, precision="bf16")
    home = tmp_path / "run"
    words = argv(mode, home, corpus, *FLOAT8, "--save", str(home / "checkpoints"))
    ranks.pretrain([*words, "--exit-interval", "5"], world_size=1, logs=home / "first")
    ranks.pretrain([*words, *ENDS], world_size=1, logs=home / "second")
    whole = tmp_path / "whole"
    full = ("--recompute-granularity", "full")
    ranks.pretrain(argv(mode, whole, corpus, *ENDS, *FLOAT8, *full), world_size=1, logs=whole / "logs")
    assert curve(home) == curve(whole)


def test_a_float8_run_is_exported(corpus: list[str], corpus_tokenizer: Path, tmp_path: Path) -> None:
    """The logits that its checkpoint keeps are those of the weights, which an export is compared with."""
    mode, ends = Mode(sharding="zero3", precision="bf16"), ("--exit-interval", "4")
    words = argv(mode, tmp_path, corpus, *FLOAT8, *ends, "--save", str(tmp_path / "saved"))
    ranks.pretrain(words, world_size=2, logs=tmp_path / "logs")
    places = ("--load", str(tmp_path / "saved"), "--output", str(tmp_path / "hf"))
    words = ["tools/merge_to_hf.py", *places, "--tokenizer-model", str(corpus_tokenizer)]
    code, said = ranks.program(words, logs=tmp_path / "export")
    assert code == 0, said
