"""The norm's own guard; that it is right, tests/distributed/test_curves.py shows."""

from __future__ import annotations

import pytest
import torch

from tinyllama_mcore.optim.clip import clip_by_global_norm


def test_a_parameter_that_nobody_marked_is_no_norm_weight() -> None:
    """Which ranks count it is not known: taken for one that all hold, ranks above 0 would leave its part out."""
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    with pytest.raises(AttributeError, match="tensor_model_parallel"):
        clip_by_global_norm([parameter], 1.0, None)
