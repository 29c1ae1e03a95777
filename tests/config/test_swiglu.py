"""Where SwiGLU is computed within its products: only as it was run, and the message names what is in the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tinyllama_mcore.config import swiglu
from tinyllama_mcore.config.schema import RunConfig

BF16 = {"bf16": {"enabled": True}}
ZERO1 = {**BF16, "zero_optimization": {"stage": 1}}
LARGE = ("--recipe", "tinyllama-1.1b")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were there, in the version that was run."""
    monkeypatch.setattr(swiglu, "quack_version", lambda: "0.6.5")


@pytest.mark.parametrize(
    ("argv", "ds", "world", "says"),
    [
        pytest.param(LARGE, ZERO1, 1, None, id="ZeRO-1"),
        pytest.param((*LARGE, "--tensor-model-parallel-size", "2"), ZERO1, 2, None, id="tensor 2"),
        pytest.param(LARGE, {**BF16, "fsdp": {}}, 2, None, id="FSDP"),
        pytest.param(LARGE, {**ZERO1, "bf16": {"enabled": False}}, 1, "in fp32", id="fp32"),
        pytest.param((*LARGE, "--transformer-impl", "local"), ZERO1, 1, "these are local ones", id="local"),
        pytest.param((*LARGE, "--fp8-recipe", "rowwise_with_gw_hp"), ZERO1, 1, "--fp8-recipe", id="float8"),
        pytest.param(LARGE, {**BF16, "zero_optimization": {"stage": 3}}, 2, "ZeRO-1 and FSDP in", id="ZeRO-3"),
        pytest.param(LARGE, {**BF16, "zero_optimization": {"stage": 3}}, 1, None, id="ZeRO-3 of one rank"),
        pytest.param((*LARGE, "--context-parallel-size", "2"), ZERO1, 2, "or context parallelism", id="context 2"),
        pytest.param(
            LARGE, {**ZERO1, "data_types": {"grad_accum_dtype": "bf16"}}, 1, "fp32 accumulation", id="bf16 gradients"
        ),
    ],
)
def test_what_is_in_the_way(
    make_run: Callable[..., RunConfig], argv: tuple[str, ...], ds: dict[str, Any], world: int, says: str | None
) -> None:
    """None where it was run; else the reason, in words."""
    found = swiglu.obstacle(make_run(*argv, ds=ds, world=world), lambda: True)
    assert (found is None) == (says is None), found
    assert says is None or says in (found or "")


def test_the_sizes_of_a_rank(make_run: Callable[..., RunConfig]) -> None:
    """Those that a tensor-parallel rank multiplies."""
    run = make_run(*LARGE, "--tensor-model-parallel-size", "4", ds=ZERO1, world=4)
    assert swiglu.obstacle(run, lambda: True) is None
    odd = replace(run, model=replace(run.model, ffn_hidden_size=5600))
    assert (
        swiglu.obstacle(odd, lambda: True)
        == "it needs multiples of 64, and a rank has hidden 2,048, feed-forward 1,400"
    )


def test_the_machine(make_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU, the package and its version."""
    run = make_run(*LARGE, ds=ZERO1)
    assert "needs a Hopper GPU" in (swiglu.obstacle(run, lambda: False) or "")
    monkeypatch.setattr(swiglu, "quack_version", lambda: "0.7.0")
    assert swiglu.obstacle(run, lambda: True) == "it was run with quack-kernels 0.6.x, and 0.7.0 is installed"
    monkeypatch.setattr(swiglu, "quack_version", lambda: None)
    assert "pip install 'tinyllama_mcore[hopper]'" in (swiglu.obstacle(run, lambda: True) or "")
