"""The checksum by which an engine reads back what it was given. tests/distributed/test_self_check.py plants faults."""

from __future__ import annotations

import pytest
import torch

from tinyllama_mcore.engine import self_check


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_checksum_sees_every_exchange(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two elements, of two rows, of two pieces, and of one bit; and of nothing it is the same."""
    monkeypatch.setattr(self_check, "PIECE", 64)
    whole = torch.randint(-(2**15), 2**15, (16, 20), generator=torch.Generator().manual_seed(0)).to(dtype)
    seen = int(self_check.checksum(whole))
    assert int(self_check.checksum(whole.clone())) == seen
    changed = [whole.flip(0), whole.flip(1), whole.roll(1), whole.roll(16), whole.view(5, 64).roll(1, 0), -whole]
    for i in range(1, whole.numel()):
        if whole.flatten()[0] != whole.flatten()[i]:
            exchanged = whole.clone().flatten()
            exchanged[[0, i]] = exchanged[[i, 0]]
            changed.append(exchanged)
    assert all(int(self_check.checksum(other)) != seen for other in changed)
    assert int(self_check.checksum(torch.zeros(3))) != int(self_check.checksum(-torch.zeros(3)))
