"""Checks a whole pair: pointers, ids, one EOD per document, and the counts of the receipt.

Reads every token once, from beginning to end, in blocks; memory does not grow with the data.
Neighbours: `receipt` checks what can be checked at the start of a run; `inspection` shows what is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import counts, indexed, receipt
from tinyllama_mcore.data.counts import Counts
from tinyllama_mcore.data.tokenizer import Tokenizer

BLOCK_TOKENS = 1 << 22
RECOUNTED = ("documents", "tokens", "bos", "eod", "unk", "separator_pairs", "largest_token_id")
"""Counts of a receipt that are compared with the files."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found in a whole pair."""

    prefix: str
    documents: int
    tokens: int
    has_receipt: bool
    faults: tuple[str, ...]
    """One sentence each; none: the pair is sound."""


@dataclass(kw_only=True)
class _Fault:
    """One kind of fault: how often, and where first."""

    what: str
    count: int = 0
    first: int = -1

    def add(self, places: np.ndarray) -> None:
        """Positions of tokens, or numbers of documents, that have it."""
        if len(places) and not self.count:
            self.first = int(places[0])
        self.count += len(places)


@dataclass(kw_only=True)
class _Tokens:
    """What is gathered from the tokens."""

    counts: Counts = field(default_factory=Counts)
    foreign: _Fault = field(default_factory=lambda: _Fault(what="token ids outside the vocabulary, first at token"))
    unended: _Fault = field(default_factory=lambda: _Fault(what="documents that do not end with EOD, the first is"))
    inside: _Fault = field(default_factory=lambda: _Fault(what="EOD tokens inside documents, first at token"))


def validate(prefix: str, tokenizer: Tokenizer) -> Verdict:
    """Check a whole pair. Faults are returned, not raised; ConfigError only where the files are missing."""
    slip = receipt.read(prefix)
    pair = indexed.PairInfo(prefix=prefix, sequences=0, documents=0, dtype=np.dtype(np.uint16), tokens=0)
    faults = []
    try:
        pair = indexed.read(prefix)
        receipt.check(prefix, tokenizer.vocabulary)
    except ConfigError as error:
        if not (indexed.bin_path(prefix).is_file() and indexed.idx_path(prefix).is_file()):
            raise
        faults.append(str(error))
    pointers = list(_pointer_faults(pair))
    faults += pointers
    if pair.sequences and not pointers:  # tokens can be told apart by document
        faults += _token_faults(pair, slip, tokenizer)
    return Verdict(
        prefix=prefix,
        documents=pair.sequences,
        tokens=pair.tokens,
        has_receipt=slip is not None,
        faults=tuple(faults),
    )


def _pointer_faults(pair: indexed.PairInfo) -> Iterator[str]:
    """Sequences follow one another without gap, and documents are made of all of them in order."""
    where = indexed.idx_path(pair.prefix)
    end = 0
    for first in range(0, pair.sequences, indexed.INDEX_BLOCK):
        block = slice(first, first + indexed.INDEX_BLOCK)
        lengths, offsets = pair.lengths()[block].astype(np.int64), pair.offsets()[block]
        expected = end + np.concatenate([[0], np.cumsum(lengths * pair.dtype.itemsize)])
        end = int(expected[-1])
        wrong = np.flatnonzero((offsets != expected[:-1]) | (lengths < 0))
        if len(wrong):
            number = first + int(wrong[0])
            yield (
                f"{where}: sequence {number} is said to be {lengths[wrong[0]]} tokens at byte {offsets[wrong[0]]}, but "
                f"those before it end at byte {expected[wrong[0]]}"
            )
            return
    bounds = pair.bounds()
    if bounds[0] != 0 or bounds[-1] != pair.sequences or np.any(np.diff(bounds) < 0):
        yield f"{where}: its documents are not made of sequences 0 to {pair.sequences - 1} in order"


def _token_faults(pair: indexed.PairInfo, slip: receipt.Receipt | None, tokenizer: Tokenizer) -> Iterator[str]:
    eod_promised = slip.append_eod if slip else _first_ends_with_eod(pair, tokenizer)
    seen = _Tokens()
    for block in _blocks(pair):
        _look_at(block, seen, tokenizer)
    where = indexed.bin_path(pair.prefix)
    told = [seen.foreign]
    if pair.sequences == pair.documents:  # else another tool split documents, and only their last part ends them
        told += [seen.unended, seen.inside] if eod_promised else [seen.inside]
    yield from (f"{where}: {fault.count:,} {fault.what} {fault.first:,}" for fault in told if fault.count)
    if slip is None:
        return
    for name in RECOUNTED:
        written, found = getattr(slip.counts, name), getattr(seen.counts, name)
        if written != found:
            yield f"{receipt.path_of(pair.prefix)}: {name} is {written:,}, but the files have {found:,}"


def _first_ends_with_eod(pair: indexed.PairInfo, tokenizer: Tokenizer) -> bool:
    """Without a receipt: whether the pair was made with --append-eod, as its first document tells."""
    tokens = indexed.TokenReader(pair).read(0)
    return len(tokens) > 0 and int(tokens[-1]) == tokenizer.eod


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Consecutive tokens of a pair, and the documents that end among them."""

    start: int
    """Position of the first token in the pair."""
    tokens: np.ndarray
    before: np.ndarray
    """The token before them, [1]; [0] at the beginning."""
    first_document: int
    """The first that ends here."""
    last_tokens: np.ndarray
    """Positions in the pair of the last tokens of the documents that end here."""


def _blocks(pair: indexed.PairInfo) -> Iterator[_Block]:
    size = pair.dtype.itemsize
    offsets = pair.offsets()
    before = np.zeros(0, dtype=pair.dtype)
    document = 0
    with open(indexed.bin_path(pair.prefix), "rb") as file:
        for start in range(0, pair.tokens, BLOCK_TOKENS):
            tokens = np.fromfile(file, dtype=pair.dtype, count=min(BLOCK_TOKENS, pair.tokens - start))
            stop = start + len(tokens)
            whole = stop == pair.tokens
            after = pair.sequences if whole else int(np.searchsorted(offsets, stop * size, side="right")) - 1
            ends = offsets[document + 1 : after + 1] // size
            ends = np.append(ends, pair.tokens) if whole else ends
            yield _Block(start=start, tokens=tokens, before=before, first_document=document, last_tokens=ends - 1)
            before, document = tokens[-1:], after


def _look_at(block: _Block, seen: _Tokens, tokenizer: Tokenizer) -> None:
    tokens = block.tokens.astype(np.int64)
    counted = counts.of_tokens(tokens, tokenizer)
    separators = (tokenizer.bos, tokenizer.eod)
    joined = len(block.before) and int(block.before[0]) in separators and int(tokens[0]) in separators
    seen.counts += replace(
        counted, documents=len(block.last_tokens), separator_pairs=counted.separator_pairs + bool(joined)
    )
    seen.foreign.add(block.start + np.flatnonzero((tokens < 0) | (tokens >= tokenizer.vocab_size)))
    eods = block.start + np.flatnonzero(tokens == tokenizer.eod)
    unended = ~np.isin(block.last_tokens, eods)
    seen.unended.add(block.first_document + np.flatnonzero(unended))
    seen.inside.add(np.setdiff1d(eods, block.last_tokens))
