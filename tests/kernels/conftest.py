"""Triton's kernels, where Triton is installed."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture
def triton_kernels() -> ModuleType:
    """The kernels, on the GPU or interpreted."""
    pytest.importorskip("triton")
    from tinyllama_mcore.kernels import triton_kernels

    return triton_kernels
