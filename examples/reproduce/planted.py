"""The bug that the paper tells of in footnote 5, planted: end-of-sequence tokens in runs behind every document.

The paper does not say how many; here they are SHARE of all tokens. What it writes has no receipt: with one, training
refuses data with more than one separator a document.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinyllama_mcore.data import indexed

SHARE = 1 / 3
"""Of the tokens, those that are planted."""


def over_insert(prefix: str, eod: int, output: Path) -> None:
    """Write the pair at `prefix` again to `output`, with more EOD tokens behind each document."""
    pair = indexed.read(prefix)
    tokens = indexed.TokenReader(pair)
    with indexed.PairWriter(output, pair.dtype) as written:
        for document in range(len(pair.lengths())):
            own = tokens.read(document)
            planted = np.full(round(len(own) * SHARE / (1 - SHARE)), eod, dtype=pair.dtype)
            written.add(np.concatenate([own, planted]), np.array([len(own) + len(planted)]))
