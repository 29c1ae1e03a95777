"""Token files of other programs to a pair as `preprocess --append-eod` writes it: each document ends in one EOD.

A document is what stands between separators, which are EOD, BOS and the ends that an index gives; what follows it is
EOD. So filler (TinyLlama's chunks ended in up to 2.1 M separators: paper, footnote 5) goes away, and no BOS stays.
Neighbours: `token_files` reads, `indexed` writes; `commands.import_tokens` is the command line of this file.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import counts, indexed, receipt, tokenizer_files
from tinyllama_mcore.data.counts import Counts
from tinyllama_mcore.data.receipt import InputFile
from tinyllama_mcore.data.tokenizer import Tokenizer, spelled_bytes
from tinyllama_mcore.preprocessing import taken, token_files
from tinyllama_mcore.preprocessing.token_files import Series, TokenFile

LONGEST = np.iinfo(np.int32).max
"""Most tokens of a document: an .idx holds lengths as int32."""


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """What to import, and how."""

    input: tuple[str, ...]
    """Files, directories or globs."""
    output_prefix: str
    """Of the pair."""
    tokenizer_model: str
    """The tokenizer that made the tokens."""
    tokenizer_type: str | None = None
    eod_token: str | None = None
    append_eod: bool = False
    """End documents with EOD that an index ends without it; else the first one ends the job."""
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was made."""

    pair: indexed.PairInfo
    receipt: receipt.Receipt
    program: str
    """Who wrote the token files."""
    tokenizers: tuple[str, ...]
    """Names of tokenizers in the metadata of the files."""
    found: Separators
    seconds: float


@dataclass(kw_only=True)
class Separators:
    """What was changed to have one EOD at the end of each document."""

    dropped: int = 0
    """BOS and EOD tokens that end no document: filler, and what begins documents."""
    added: int = 0
    """EOD put where an index ends a document without it."""
    cut: int = 0
    """Documents that the end of a series of chunks cut off, and that end there with EOD."""


def run(job: ImportJob) -> Imported:
    """Write the pair and its receipt.

    Raises:
        ConfigError: the files are not whole, hold an id outside the vocabulary, or do not say where documents end; or a
            pair is there already.
    """
    start = time.monotonic()
    tokenizer = tokenizer_files.load(job.tokenizer_model, job.tokenizer_type, job.eod_token)
    kind, series = token_files.find(job.input)
    taken.refuse_taken(job.output_prefix, overwrite=job.overwrite)
    making = _Making(tokenizer=tokenizer, append_eod=job.append_eod)
    with indexed.PairWriter(job.output_prefix, indexed.token_dtype(tokenizer.vocab_size)) as writer:
        for each in series:
            for tokens, lengths in making.documents_of(each):
                writer.add(tokens, lengths)
        if not making.counts.documents:
            raise ConfigError(f"--input {' '.join(job.input)}: holds no documents")
        receipt.path_of(job.output_prefix).unlink(missing_ok=True)
    pair, seconds = indexed.read(job.output_prefix), time.monotonic() - start
    program = token_files.PROGRAMS[kind]
    total = replace(
        making.counts, rows=making.counts.documents, libraries={program: making.counts.tokens}, seconds=seconds
    )
    slip = receipt.Receipt(
        counts=total,
        append_eod=True,
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
        tokenizer_model=tokenizer.path,
        tokenizer_sha256=tokenizer.vocabulary.sha256,
        json_key="",
        bin_bytes=indexed.bin_path(pair.prefix).stat().st_size,
        idx_bytes=indexed.idx_path(pair.prefix).stat().st_size,
        fingerprint=pair.fingerprint,
        inputs=tuple(making.inputs),
    )
    receipt.write(pair.prefix, slip)
    named = {file.tokenizer for each in series for file in each.files if file.tokenizer}
    return Imported(
        pair=pair,
        receipt=slip,
        program=program,
        tokenizers=tuple(sorted(named)),
        found=making.found,
        seconds=seconds,
    )


@dataclass(kw_only=True)
class _Making:
    """Makes documents of stored tokens, block by block, and counts."""

    tokenizer: Tokenizer
    append_eod: bool
    counts: Counts = field(default_factory=Counts)
    found: Separators = field(default_factory=Separators)
    inputs: list[InputFile] = field(default_factory=list)
    unfinished: int = 0
    """Tokens so far of the document that the next block goes on with."""

    def __post_init__(self) -> None:
        self._dtype = indexed.token_dtype(self.tokenizer.vocab_size)
        self._spelled = spelled_bytes(self.tokenizer)

    def documents_of(self, series: Series) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tokens in order, and the lengths of the documents that end in them: what `PairWriter.add` takes."""
        ended, last = self.counts.documents, np.zeros(0, dtype=self._dtype)
        for file in series.files:
            digest = hashlib.sha256()
            for tokens, ends in file.blocks(digest):
                self._check_ids(tokens, file)
                yield self._counted(self._normal(tokens.astype(self._dtype), ends, file))
            size = file.skipped_bytes + file.tokens * file.dtype.itemsize
            self.inputs.append(InputFile(path=str(file.path), bytes=size, sha256=digest.hexdigest()))
        if self.unfinished:
            if self.counts.documents == ended:
                raise ConfigError(
                    f"--input {series.files[0].path}: holds neither EOD (id {self.tokenizer.eod}) nor BOS (id "
                    f"{self.tokenizer.bos}), so where documents end is unknown; preprocess the raw text again"
                )
            self.found.cut += 1
            last = np.append(last, self._dtype.type(self.tokenizer.eod))
            yield self._counted(last)

    def _check_ids(self, tokens: np.ndarray, file: TokenFile) -> None:
        wrong = np.flatnonzero((tokens < 0) | (tokens >= self.tokenizer.vocab_size))
        if len(wrong):
            raise ConfigError(
                f"--input {file.path}: holds token id {tokens[wrong[0]]}, but {self.tokenizer.path} has "
                f"{self.tokenizer.vocab_size} ids; give the tokenizer that made the file"
            )

    def _normal(self, tokens: np.ndarray, ends: np.ndarray, file: TokenFile) -> np.ndarray:
        """The block with one EOD after each document that ends in it, and no other separator, [n]."""
        eod, bos = self.tokenizer.eod, self.tokenizer.bos
        is_text = np.concatenate([[self.unfinished > 0], (tokens != eod) & (tokens != bos)])  # [n + 1], one before
        bare = ends[is_text[ends]]
        if len(bare):
            if not self.append_eod:
                raise ConfigError(
                    f"--input {file.path}: holds documents that do not end with EOD (id {eod}); give --append-eod to "
                    "end them so"
                )
            self.found.added += len(bare)
            tokens = np.insert(tokens, bare, eod)
            is_text = np.insert(is_text, bare + 1, False)
        kept = is_text[1:] | is_text[:-1]  # text, and a separator right after text
        self.found.dropped += len(tokens) - int(np.count_nonzero(kept))
        return np.where(is_text[1:], tokens, self._dtype.type(eod))[kept]

    def _counted(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same tokens and the lengths of the documents that end in them."""
        ends = np.flatnonzero(tokens == self.tokenizer.eod) + 1
        lengths = np.diff(ends, prepend=-self.unfinished)
        self.unfinished = len(tokens) - int(ends[-1]) if len(ends) else self.unfinished + len(tokens)
        if max(self.unfinished, lengths.max(initial=0)) > LONGEST:
            raise ConfigError(f"--input: a document goes on for more than the {LONGEST:,} tokens that an .idx can say")
        self.counts += counts.of_tokens(tokens, self.tokenizer) + counts.of_documents(lengths)
        self.counts += Counts(text_bytes=int(self._spelled[tokens].sum(dtype=np.int64)))
        return tokens, lengths
