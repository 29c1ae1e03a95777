"""Makes a batch of pieces of the input into a shard: a pair that one worker reads, tokenizes and writes.

The name of a finished shard is a checksum of all that it depends on, so a later job with --resume can reuse it.
Neighbours: `preprocess` deals out the batches and puts the shards together.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from tinyllama_mcore.config import atomic
from tinyllama_mcore.data import counts, indexed
from tinyllama_mcore.data.counts import Counts
from tinyllama_mcore.data.tokenizer import Vocabulary
from tinyllama_mcore.preprocessing import documents, readers
from tinyllama_mcore.preprocessing.encoder import Encoder, FastEncoderDiffers
from tinyllama_mcore.preprocessing.piece import Batch, Piece

VERSION = 3
"""Version of what is written and counted: shards of another one are not reused."""
QUARANTINED_CHARACTERS = 10_000
"""Characters of a bad row that are kept."""


class BadRowFound(ValueError):
    """A bad row where none is allowed; `row` counts from 1, where the batch begins with its file."""

    def __init__(self, path: str, row: int, message: str) -> None:
        """Where, and what is wrong."""
        super().__init__(path, row, message)
        self.path, self.row, self.message = path, row, message


@dataclass(frozen=True, kw_only=True)
class ShardRules:
    """How pieces become tokens; the same for all shards of a job."""

    key: str
    """Field of a row that holds the text."""
    vocabulary: Vocabulary
    """Ids of the tokenizer."""
    append_eod: bool
    """End each document with EOD."""
    exclude_sets: frozenset[str]
    """Sets of RedPajama whose rows are dropped."""
    quarantine: bool
    """Skip bad rows and keep them in a file; else the first one ends the job."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished shard."""

    prefix: str
    """Prefix of its pair."""
    batch: Batch
    """What it was made from."""
    sha256: tuple[str | None, ...]
    """Of each piece, the checksum of the whole file, where it is the first of its file."""
    rows: tuple[int, ...] = ()
    """Of each piece, the rows that were read."""
    counts: Counts

    @property
    def quarantined(self) -> Path:
        """Its bad rows, as JSON lines: the number of their piece, and of the row from its beginning."""
        return Path(f"{self.prefix}.quarantine")


def make(encoder: Encoder, rules: ShardRules, folder: Path, batch: Batch) -> Shard:
    """The shard of a batch in `folder`; made there unless it is there. Runs in a worker.

    Raises:
        BadRowFound: a bad row, and the rules keep no quarantine.
        ConfigError: the file cannot be read.
    """
    prefix = folder / _name(rules, batch)
    record = Path(f"{prefix}.json")
    try:
        found = json.loads(record.read_text())
        of_pieces = {name: tuple(found[name]) for name in ("sha256", "rows")}
        return Shard(prefix=str(prefix), batch=batch, **of_pieces, counts=Counts(**found["counts"]))
    except FileNotFoundError:
        pass
    start = time.monotonic()
    sha256 = tuple(readers.checksum(piece.path) if piece.start == 0 else None for piece in batch)
    shard = Shard(prefix=str(prefix), batch=batch, sha256=sha256, counts=Counts())
    try:
        shard = _write(rules, shard, encoder)
    except FastEncoderDiffers:  # the encoder is the deciding library's now
        shard = _write(rules, shard, encoder)
    shard = replace(shard, counts=replace(shard.counts, seconds=time.monotonic() - start))
    atomic.write_text(record, json.dumps({"sha256": sha256, "rows": shard.rows, "counts": asdict(shard.counts)}))
    return shard


def discard(folder: Path) -> None:
    """Remove a directory of shards, records first: a job that is killed here leaves none that looks finished."""
    for record in folder.glob("*.json"):
        record.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _name(rules: ShardRules, batch: Batch) -> str:
    origin = {
        "version": VERSION,
        **asdict(rules),
        "exclude_sets": sorted(rules.exclude_sets),
        "batch": [asdict(piece) for piece in batch],
    }
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:24]


def _write(rules: ShardRules, shard: Shard, encoder: Encoder) -> Shard:
    """Write the pair and the quarantine of a shard; it comes back with its rows and counts."""
    total = Counts()
    unfinished = 0  # tokens written of a document that continues in the next part
    with indexed.PairWriter(shard.prefix, encoder.dtype) as pair, open(shard.quarantined, "w") as quarantine:
        texts = _Texts(rules, shard.batch, quarantine)
        eod = rules.vocabulary.eod if rules.append_eod else None
        for made in encoder.encode(texts, eod):
            tokens, ends = made.tokens, made.ends
            lengths = np.diff(ends, prepend=-unfinished)
            unfinished = len(tokens) - int(ends[-1]) if len(ends) else unfinished + len(tokens)
            pair.add(tokens, lengths)
            total += counts.of_tokens(tokens, encoder.tokenizer) + counts.of_documents(lengths)
            total += Counts(text_bytes=made.text_bytes, empty_documents=made.empty, libraries=made.libraries)
    return replace(shard, rows=tuple(texts.rows), counts=total + texts.counts())


class _Texts:
    """The texts of a batch that are kept, in order; the rest is counted as it goes by."""

    def __init__(self, rules: ShardRules, batch: Batch, quarantine: TextIO) -> None:
        self._rules, self._batch, self._quarantine = rules, batch, quarantine
        self.rows: list[int] = []
        self._empty = 0
        self._dropped = Counter(dict.fromkeys(sorted(rules.exclude_sets), 0))
        self._sets: Counter[str] = Counter()
        self._bad: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        decode = documents.json_decoder()
        for piece in self._batch:
            self.rows.append(0)
            yield from self._of(piece, decode)

    def _of(self, piece: Piece, decode: Callable[[bytes], Any]) -> Iterator[str]:
        key, excluded = self._rules.key, self._rules.exclude_sets
        for row in readers.rows(piece, key):
            self.rows[-1] += 1
            if isinstance(row, bytes) and row.isspace():
                continue
            try:
                text, set_name = documents.document(row, key, decode)
            except documents.BadRow as error:
                self._set_aside(piece, row, error)
                continue
            if excluded:
                self._sets[set_name] += 1
            if set_name in excluded:
                self._dropped[set_name] += 1
            elif not text:
                self._empty += 1
            else:
                yield text

    def _set_aside(self, piece: Piece, row: documents.Row, error: documents.BadRow) -> None:
        if not self._rules.quarantine:
            before = sum(
                rows for each, rows in zip(self._batch, self.rows[:-1], strict=False) if each.path == piece.path
            )
            raise BadRowFound(piece.path, before + self.rows[-1], error.message)
        self._bad[error.kind] += 1
        content = row.decode(errors="backslashreplace") if isinstance(row, bytes) else repr(row)
        entry = {"piece": len(self.rows) - 1, "row": self.rows[-1], "kind": error.kind, "why": error.message}
        self._quarantine.write(json.dumps({**entry, "content": content[:QUARANTINED_CHARACTERS]}) + "\n")

    def counts(self) -> Counts:
        """Counts of what was read so far."""
        return Counts(
            rows=sum(self.rows),
            empty_documents=self._empty,
            dropped=dict(self._dropped),
            sets=dict(self._sets),
            quarantined=dict(self._bad),
        )
