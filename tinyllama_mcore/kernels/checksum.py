"""A 64-bit checksum of a tensor's bits and their places, computed where the tensor is.

The sum, modulo 2^64, of each element's bits times a number of its place. These numbers are odd, so an element that
changes alone always changes the sum; elements that are exchanged, or moved together, change it but for about one case
in 2^32. Neighbour: `engine.self_check` compares what an engine was given with what it holds.
"""

from __future__ import annotations

import torch

PIECE = 1 << 22
"""Elements that plain torch takes at a time, so that its 64-bit copies stay small."""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What bits are read as, by bytes of an element."""
ODD = -7046029254386353131
"""2^64 / golden ratio, as a signed number: consecutive multiples of it differ in all their bits."""


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """The checksum of a tensor of any shape, elements of 2, 4 or 8 bytes: a scalar, int64, on its device."""
    bits = tensor.detach().contiguous().view(-1).view(INTEGERS[tensor.element_size()])
    if bits.is_cuda:
        from tinyllama_mcore.kernels import triton_checksum

        return triton_checksum.checksum(bits, ODD)
    return plain(bits)


def plain(bits: torch.Tensor) -> torch.Tensor:
    """The checksum of whole numbers [n]."""
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), PIECE):
        piece = bits[start : start + PIECE].long()
        weights = torch.arange(start, start + piece.numel(), device=bits.device) * ODD
        total += (piece * (weights ^ (weights >> 32) | 1)).sum()
    return total
