"""Context parallelism's gather stays out of compiled layers: torch 2.11 gets its backward pass wrong, silently."""

from __future__ import annotations

import pytest
import torch

from tinyllama_mcore.model import context


def test_the_gather_is_in_no_graph() -> None:
    """A graph that has to hold it is refused by torch; what a run learns then, tests/gpu shows."""
    whole = torch.compile(lambda query: context.attend(lambda q, k, v: q, query, query, query, None), fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"torch\.compiler\.disable"):
        whole(torch.zeros(4, 1, 2, 8))
