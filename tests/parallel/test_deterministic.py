"""A run that gives the same bits each time. What real GPUs then give: tests/gpu/test_deterministic.py."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn.attention import SDPBackend

from tinyllama_mcore.model import attention
from tinyllama_mcore.parallel.deterministic import WORKSPACE, deterministic


def test_torch_is_asked_for_it_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the length of the block, whatever ends it; a workspace that the user chose stays."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    with pytest.raises(KeyError), deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ[WORKSPACE] == ":4096:8"
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    assert WORKSPACE not in os.environ
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"


def test_nothing_is_asked_for_without_it() -> None:
    """Deterministic kernels are slower."""
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("wanted", [False, True])
def test_cudnn_has_no_part_in_it(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backward pass adds up in no fixed order, and torch would not take it."""
    monkeypatch.setattr(attention, "_torch_kernel", lambda backends: backends)
    with deterministic(wanted):
        assert (SDPBackend.CUDNN_ATTENTION in attention.kernel("auto")) == (not wanted)
        assert SDPBackend.FLASH_ATTENTION in attention.kernel("auto")
