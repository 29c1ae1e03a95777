"""Makes one piece of the input into a shard: a pair that one worker reads, tokenizes and writes.

The name of a finished shard is a checksum of all that it depends on, so a later job with --resume can reuse it.
Neighbours: `preprocess` deals out the pieces and puts the shards together.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from tinyllama_mcore.config import atomic
from tinyllama_mcore.data import counts, indexed
from tinyllama_mcore.data.counts import Counts
from tinyllama_mcore.data.tokenizer import Vocabulary
from tinyllama_mcore.preprocessing import documents, readers
from tinyllama_mcore.preprocessing.encoder import Encoder, FastEncoderDiffers
from tinyllama_mcore.preprocessing.piece import Piece

VERSION = 2
"""Version of what is written and counted: shards of another one are not reused."""
QUARANTINED_CHARACTERS = 10_000
"""Characters of a bad row that are kept."""


class BadRowFound(ValueError):
    """A bad row where none is allowed; `row` counts from 1 at the beginning of the piece."""

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
    piece: Piece
    """What it was made from."""
    sha256: str | None
    """Checksum of the whole file, where the piece is the first of its file."""
    counts: Counts

    @property
    def quarantined(self) -> Path:
        """Its bad rows, as JSON lines whose row numbers count from the beginning of the piece."""
        return Path(f"{self.prefix}.quarantine")


def make(encoder: Encoder, rules: ShardRules, folder: Path, piece: Piece) -> Shard:
    """The shard of a piece in `folder`; made there unless it is there. Runs in a worker.

    Raises:
        BadRowFound: a bad row, and the rules keep no quarantine.
        ConfigError: the file cannot be read.
    """
    prefix = folder / _name(rules, piece)
    record = Path(f"{prefix}.json")
    try:
        found = json.loads(record.read_text())
        return Shard(prefix=str(prefix), piece=piece, sha256=found["sha256"], counts=Counts(**found["counts"]))
    except FileNotFoundError:
        pass
    start = time.monotonic()
    sha256 = readers.checksum(piece.path) if piece.start == 0 else None
    shard = Shard(prefix=str(prefix), piece=piece, sha256=sha256, counts=Counts())
    try:
        counted = _write(rules, shard, encoder)
    except FastEncoderDiffers:  # the encoder is the deciding library's now
        counted = _write(rules, shard, encoder)
    shard = replace(shard, counts=replace(counted, seconds=time.monotonic() - start))
    atomic.write_text(record, json.dumps({"sha256": sha256, "counts": asdict(shard.counts)}))
    return shard


def discard(folder: Path) -> None:
    """Remove a directory of shards, records first: a job that is killed here leaves none that looks finished."""
    for record in folder.glob("*.json"):
        record.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _name(rules: ShardRules, piece: Piece) -> str:
    origin = {
        "version": VERSION,
        **asdict(rules),
        "exclude_sets": sorted(rules.exclude_sets),
        "piece": asdict(piece),
    }
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:24]


def _write(rules: ShardRules, shard: Shard, encoder: Encoder) -> Counts:
    """Write the pair and the quarantine of a shard."""
    total = Counts()
    unfinished = 0  # tokens written of a document that continues in the next part
    with indexed.PairWriter(shard.prefix, encoder.dtype) as pair, open(shard.quarantined, "w") as quarantine:
        texts = _Texts(rules, shard.piece, quarantine)
        eod = rules.vocabulary.eod if rules.append_eod else None
        for made in encoder.encode(texts, eod):
            tokens, ends = made.tokens, made.ends
            lengths = np.diff(ends, prepend=-unfinished)
            unfinished = len(tokens) - int(ends[-1]) if len(ends) else unfinished + len(tokens)
            pair.add(tokens, lengths)
            total += counts.of_tokens(tokens, encoder.tokenizer) + counts.of_documents(lengths)
            total += Counts(text_bytes=made.text_bytes, empty_documents=made.empty, libraries=made.libraries)
    return total + texts.counts()


class _Texts:
    """The texts of a piece that are kept, in order; the rest is counted as it goes by."""

    def __init__(self, rules: ShardRules, piece: Piece, quarantine: TextIO) -> None:
        self._rules, self._piece, self._quarantine = rules, piece, quarantine
        self._rows = self._empty = 0
        self._dropped = Counter(dict.fromkeys(sorted(rules.exclude_sets), 0))
        self._sets: Counter[str] = Counter()
        self._bad: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        decode, key, excluded = documents.json_decoder(), self._rules.key, self._rules.exclude_sets
        for row in readers.rows(self._piece, key):
            self._rows += 1
            if isinstance(row, bytes) and row.isspace():
                continue
            try:
                text, set_name = documents.document(row, key, decode)
            except documents.BadRow as error:
                self._set_aside(row, error)
                continue
            if excluded:
                self._sets[set_name] += 1
            if set_name in excluded:
                self._dropped[set_name] += 1
            elif not text:
                self._empty += 1
            else:
                yield text

    def _set_aside(self, row: documents.Row, error: documents.BadRow) -> None:
        if not self._rules.quarantine:
            raise BadRowFound(self._piece.path, self._rows, error.message)
        self._bad[error.kind] += 1
        content = row.decode(errors="backslashreplace") if isinstance(row, bytes) else repr(row)
        entry = {"row": self._rows, "kind": error.kind, "why": error.message}
        self._quarantine.write(json.dumps({**entry, "content": content[:QUARANTINED_CHARACTERS]}) + "\n")

    def counts(self) -> Counts:
        """Counts of what was read so far."""
        return Counts(
            rows=self._rows,
            empty_documents=self._empty,
            dropped=dict(self._dropped),
            sets=dict(self._sets),
            quarantined=dict(self._bad),
        )
