"""The unigram entropy of a blend: the loss of the best model that knows how often each token comes, and nothing else.

A training loss below it means that the model has learned from context. Neighbours: `data.indexed` knows the files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinyllama_mcore.data.indexed import bin_path, check


def token_shares(prefix: str, vocab_size: int) -> np.ndarray:
    """How often each id comes in a .bin/.idx pair, float64 [v], adding up to 1.

    Raises:
        ConfigError: the pair is missing or broken.
    """
    pair = check(prefix, vocab_size)
    tokens = np.memmap(bin_path(prefix), dtype=pair.dtype, mode="r")
    return np.bincount(tokens, minlength=vocab_size) / len(tokens)


def entropy(shares: np.ndarray) -> float:
    """Shannon entropy in nats of a distribution; entries of zero add nothing."""
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def unigram_entropy(blend: Sequence[tuple[float, str]], vocab_size: int) -> float:
    """Entropy in nats a token of the blend, for (weight, prefix) pairs whose weights are shares of samples."""
    total = sum(weight for weight, _ in blend)
    shares = [weight / total * token_shares(prefix, vocab_size) for weight, prefix in blend]
    return entropy(np.sum(shares, axis=0))
