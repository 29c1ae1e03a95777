"""Initial weights drawn ahead: those of this rank, the same as drawn alone, by threads that end."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest
import torch

from tinyllama_mcore.config.parameters import LogicalParameter, logical_parameters
from tinyllama_mcore.config.recipes import RECIPES
from tinyllama_mcore.config.schema import ModelConfig
from tinyllama_mcore.model import initialize

MODEL = dataclasses.replace(RECIPES["tinyllama-debug"].model, vocab_size=64)
NAMES = [parameter.name for parameter in logical_parameters(MODEL)]
LAST_STAGE = [name for name in NAMES if ".layers.2." in name or ".layers.3." in name or "output" in name]


def test_only_what_a_rank_holds_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pipeline rank's names, in its order and out of it, never more at once than there are threads."""
    draw, drawn = initialize.initial_value, list[str]()

    def counted(parameter: LogicalParameter, model: ModelConfig, seed: int) -> torch.Tensor:
        drawn.append(parameter.name)
        return draw(parameter, model, seed)

    monkeypatch.setattr(initialize, "initial_value", counted)
    shapes = {parameter.name: parameter for parameter in logical_parameters(MODEL)}
    with initialize.drawn_ahead(MODEL, 1, LAST_STAGE, threads=3) as value:
        for asked, name in enumerate(LAST_STAGE, 1):
            assert torch.equal(value(name), draw(shapes[name], MODEL, 1))
            time.sleep(0.002)
            assert asked <= len(drawn) <= asked + 2
    assert sorted(drawn) == sorted(LAST_STAGE)
    with initialize.drawn_ahead(MODEL, 1, NAMES, threads=3) as value:
        for name in reversed(NAMES):
            assert torch.equal(value(name), draw(shapes[name], MODEL, 1))


def test_the_threads_end_with_the_block() -> None:
    """And where it is left early."""
    before = set(threading.enumerate())
    with pytest.raises(KeyError), initialize.drawn_ahead(MODEL, 1, NAMES, threads=4) as value:
        value(NAMES[0])
        raise KeyError
    assert set(threading.enumerate()) == before
