"""AdamW's groups: the original decays every parameter, Megatron's habit is matrices only."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tinyllama_mcore.config.recipes import RECIPES
from tinyllama_mcore.optim.groups import adamw

PARAMETERS = [("matrix", torch.nn.Parameter(torch.ones(2, 3))), ("norm", torch.nn.Parameter(torch.ones(3)))]


@pytest.mark.parametrize(("decay_on", "expected"), [("all", [(0.1, 2)]), ("matrices", [(0.1, 1), (0.0, 1)])])
def test_groups(decay_on: str, expected: list[tuple[float, int]]) -> None:
    """(weight decay, parameters) of each group, and the paper's betas in all."""
    config = dataclasses.replace(RECIPES["tinyllama-1.1b"].optimizer, weight_decay_on=decay_on)
    optimizer = adamw(iter(PARAMETERS), config)
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == expected
    assert all(group["betas"] == (0.9, 0.95) and group["eps"] == 1e-8 for group in optimizer.param_groups)
