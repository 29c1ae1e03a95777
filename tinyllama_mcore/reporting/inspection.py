"""What a pair holds, for people to read: one document, documents that contain a string, figures of the whole.

Neighbours: `validation` checks a pair, `blend_report` looks at samples of a blend; `commands.inspect_data` is the
command line of all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import DataConfig
from tinyllama_mcore.data import counts, indexed, receipt, tokenizer_files
from tinyllama_mcore.data.tokenizer import Tokenizer

EXCERPT_CHARACTERS = 40
"""Shown on each side of what was found."""
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document of a pair."""

    prefix: str
    document: int
    """Position in the pair, from 0."""
    tokens: list[int]
    """Its ids, EOD included."""
    text: str
    """What they spell."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """A document that contains a string."""

    document: int
    """Position in the pair, from 0."""
    character: int
    """Where the string is first found in the document's text, in characters from 0."""
    excerpt: str
    """The string with what stands around it."""


def tokenizer_of(prefix: str, data: DataConfig) -> Tokenizer:
    """The tokenizer that `data` names, else the one that the receipt names. ConfigError where neither does."""
    slip = receipt.read(prefix)
    ends = data.eod_token or ({slip.tokenizer_sha256: slip.eod} if slip else None)
    if data.tokenizer_model is not None:
        return tokenizer_files.load(data.tokenizer_model, data.tokenizer_type, ends)
    if slip is None:
        indexed.read(prefix)  # that there is no pair at all is reported first
        raise ConfigError(f"--tokenizer-model is needed: there is no receipt {receipt.path_of(prefix)} that names it")
    return tokenizer_files.load(slip.tokenizer_model, eod=ends)


def document(prefix: str, number: int, tokenizer: Tokenizer) -> Document:
    """A document, decoded. ConfigError where there is none of this number, or it holds ids of another vocabulary."""
    pair = receipt.check(prefix, tokenizer.vocabulary)
    if not 0 <= number < pair.sequences:
        raise ConfigError(f"--document {number}: {prefix} has documents 0 to {pair.sequences - 1}")
    ids = indexed.TokenReader(pair).read(number)
    return Document(prefix=prefix, document=number, tokens=ids.tolist(), text=decoded(prefix, number, ids, tokenizer))


def decoded(prefix: str, number: int, ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of ids of a document. ConfigError for an id that the vocabulary does not have."""
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab_size:
        raise ConfigError(
            f"--data-path {prefix}: document {number} holds ids from {ids.min()} to {ids.max()}, but the vocabulary "
            f"is 0 to {tokenizer.vocab_size - 1}: give the tokenizer that made the data with --tokenizer-model"
        )
    return tokenizer.decode(ids)


def search(prefix: str, text: str, tokenizer: Tokenizer) -> Iterator[Match]:
    """Every document whose text contains `text`, in order: exact, across token boundaries too.

    Documents are spelled byte by byte from a table (a library's own decoding takes several times as long); what is
    found is decoded. ConfigError for an empty string.
    """
    if not text:
        raise ConfigError("--search: an empty string is in every document; give at least one character")
    pair = receipt.check(prefix, tokenizer.vocabulary)
    reader, spellings = indexed.TokenReader(pair), tokenizer.spellings()
    sought = tokenizer.written(text).encode()
    for number in range(pair.sequences):
        ids = reader.read(number)
        try:
            spelled = b"".join(map(spellings.__getitem__, ids.tolist()))
        except IndexError:
            decoded(prefix, number, ids, tokenizer)  # tells which id it is
            raise
        if sought not in spelled:
            continue
        whole = tokenizer.decode(ids)
        place = whole.find(text)
        if place >= 0:  # else it was the space that SentencePiece puts before the first word
            excerpt = whole[max(place - EXCERPT_CHARACTERS, 0) : place + len(text) + EXCERPT_CHARACTERS]
            yield Match(document=number, character=place, excerpt=excerpt)


def statistics(prefix: str) -> dict[str, Any]:
    """Figures of a pair: what its index says, and what its receipt counted, where it has one."""
    pair = indexed.read(prefix)
    lengths = pair.lengths()
    if not pair.sequences:
        raise ConfigError(f"--data-path {prefix}: {indexed.idx_path(prefix)} lists no documents")
    found: dict[str, Any] = {
        "prefix": prefix,
        "documents": pair.sequences,
        "tokens": pair.tokens,
        "dtype": str(pair.dtype),
        "mean length": pair.tokens / pair.sequences,
        "length by percentile": {
            str(share): int(length)
            for share, length in zip(PERCENTILES, np.percentile(lengths, PERCENTILES, method="lower"), strict=True)
        },
        "documents by length": counts.of_documents(lengths).lengths,
    }
    slip = receipt.read(prefix)
    if slip is not None:
        found |= {
            "bytes per token": slip.counts.text_bytes / max(slip.counts.tokens, 1),
            "receipt": {key: value for key, value in asdict(slip.counts).items() if key != "lengths"},
        }
    return found
