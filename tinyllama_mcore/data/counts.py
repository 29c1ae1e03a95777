"""What is counted while documents become tokens, so that it can be proved afterwards.

The original run trained up to 2.3 T tokens on separators that nobody had counted (paper, footnote 5). Counts add up: of
batches to a shard's, of shards to a pair's, of pairs to a merged pair's. Neighbours: `shard` counts, `receipt` keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from tinyllama_mcore.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows read, skipped and written. Every field but one adds up."""

    rows: int = 0
    """Rows read, blank lines included."""
    documents: int = 0
    """Documents written."""
    tokens: int = 0
    """Tokens written, EOD included."""
    text_bytes: int = 0
    """UTF-8 bytes of the text of those documents."""
    empty_documents: int = 0
    """Rows skipped because their text gives no token."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows that --exclude-set dropped, by set."""
    sets: Mapping[str, int] = field(default_factory=dict)
    """With --exclude-set: rows by the set that they name, "" where they name none."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Rows skipped because they hold no document, by what is wrong with them."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Documents by length: under "64" those of 64 to 127 tokens, and so on in powers of two."""
    largest_token_id: int = -1
    """-1 where there is none. Does not add up: the largest one counts."""
    bos: int = 0
    """Tokens that begin a document in other people's data; none is ever written here."""
    eod: int = 0
    """Tokens that end a document."""
    unk: int = 0
    """Tokens that stand for text without a piece."""
    separator_pairs: int = 0
    """Places where a BOS or EOD follows another one: filler."""
    libraries: Mapping[str, int] = field(default_factory=dict)
    """Tokens by the library that encoded them."""
    seconds: float = 0.0
    """Time of all workers together, from reading to writing."""

    def __add__(self, other: Counts) -> Counts:
        """Both."""
        summed = {name: _added(getattr(self, name), getattr(other, name)) for name in FIELDS}
        return Counts(**{**summed, "largest_token_id": max(self.largest_token_id, other.largest_token_id)})

    @property
    def separators(self) -> int:
        """BOS and EOD tokens."""
        return self.bos + self.eod


FIELDS = tuple(field.name for field in fields(Counts))


def _added(a: Any, b: Any) -> Any:  # noqa: ANN401
    if not isinstance(a, Mapping):
        return a + b
    total = Counter(a)
    total.update(b)
    return dict(total)


def of_documents(lengths: np.ndarray) -> Counts:
    """Counts of whole documents by their lengths in tokens, EOD included."""
    exponents = np.bincount(np.frexp(lengths)[1])  # n has exponent e where 2^(e-1) <= n < 2^e
    by_length = {str(1 << exponent - 1): int(count) for exponent, count in enumerate(exponents) if count}
    return Counts(documents=len(lengths), lengths=by_length)


def of_tokens(tokens: np.ndarray, tokenizer: Tokenizer) -> Counts:
    """Counts of some tokens."""
    ends, begins = tokens == tokenizer.eod, tokens == tokenizer.bos
    separators = ends | begins
    return Counts(
        tokens=len(tokens),
        largest_token_id=int(tokens.max()) if len(tokens) else -1,
        bos=int(np.count_nonzero(begins)),
        eod=int(np.count_nonzero(ends)),
        unk=int(np.count_nonzero(tokens == tokenizer.unk)),
        separator_pairs=int(np.count_nonzero(separators[1:] & separators[:-1])),
    )
