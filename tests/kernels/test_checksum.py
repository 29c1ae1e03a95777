"""The checksum by which an engine reads back what it was given. tests/distributed/test_self_check.py plants faults."""

from __future__ import annotations

import pytest
import torch

from tinyllama_mcore.kernels import checksum

DTYPES = [torch.float32, torch.bfloat16, torch.int64]


def _drawn(dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(-(2**15), 2**15, (16, 20), generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checksum_sees_every_exchange(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two elements, of two rows, of two pieces, and of one bit; and of nothing it is the same."""
    monkeypatch.setattr(checksum, "PIECE", 64)
    whole = _drawn(dtype)
    seen = int(checksum.checksum(whole))
    assert int(checksum.checksum(whole.clone())) == seen
    changed = [whole.flip(0), whole.flip(1), whole.roll(1), whole.roll(16), whole.view(5, 64).roll(1, 0), -whole]
    for i in range(1, whole.numel()):
        if whole.flatten()[0] != whole.flatten()[i]:
            exchanged = whole.clone().flatten()
            exchanged[[0, i]] = exchanged[[i, 0]]
            changed.append(exchanged)
    assert all(int(checksum.checksum(other)) != seen for other in changed)
    assert int(checksum.checksum(torch.zeros(3))) != int(checksum.checksum(-torch.zeros(3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_and_programs_do_not_matter(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch in one piece, in pieces, and Triton, on the GPU or interpreted: one number."""
    triton_checksum = pytest.importorskip("tinyllama_mcore.kernels.triton_checksum", exc_type=ImportError)
    bits = _drawn(dtype).view(-1).view(checksum.INTEGERS[dtype.itemsize])
    seen = int(checksum.plain(bits))
    on = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(triton_checksum, "_BLOCK", 128)
    assert int(triton_checksum.checksum(bits.to(on), checksum.ODD)) == seen
    monkeypatch.setattr(checksum, "PIECE", 64)
    assert int(checksum.plain(bits)) == seen
