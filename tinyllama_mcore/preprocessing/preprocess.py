"""Makes raw files into one `.bin/.idx` pair with its receipt: workers tokenize pieces, the parent joins their shards.

Workers read, tokenize and write; only the names of finished shards come back. Shards are put together in the order of
the input, so the bytes depend neither on the number of workers nor on how often the job was killed and resumed.
`commands.preprocess_data` is the command line of this file, `merge` puts pairs of several machines together.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.tokenizer_types import rounded_up
from tinyllama_mcore.data import indexed, receipt, tokenizer_files
from tinyllama_mcore.data.counts import Counts
from tinyllama_mcore.data.tokenizer import Tokenizer, Vocabulary
from tinyllama_mcore.preprocessing import documents, exclusion, inputs, readers, shard, sources, taken
from tinyllama_mcore.preprocessing.encoder import Encoder
from tinyllama_mcore.preprocessing.piece import TXT_DOCUMENTS, batches
from tinyllama_mcore.preprocessing.sources import RawFile
from tinyllama_mcore.preprocessing.workers import Crew

JUDGED_ROWS = 10_000
"""Rows before the rate of bad rows is judged for the first time; it is judged at the end too. After so many rows a note
also says where --exclude-set has found nothing yet."""
NO_EOD = (
    "without --append-eod no token marks the end of a document: the model cannot learn where a text ends, and "
    "--inter-document-masking cannot be used"
)
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PreprocessJob:
    """What to read, and how to turn it into tokens."""

    inputs: tuple[str, ...]
    """Files, directories and globs, or their URLs."""
    output_prefix: str
    """Each key's pair goes to `{output_prefix}_{key}_document`, Megatron-LM's naming."""
    tokenizer_model: str
    """SentencePiece model, tokenizer.json, or a directory that holds one."""
    append_eod: bool
    """End each document with EOD."""
    tokenizer_type: str | None = None
    """A name of `config.tokenizer_types.TYPES`; None: by the file."""
    eod_token: str | None = None
    """Special token that is EOD; None: the one that the tokenizer names."""
    vocab_size: int | None = None
    """Rows of the model that is to be trained: a tokenizer with more ids is refused. None: as many as it has ids."""
    make_vocab_size_divisible_by: int = 1
    """`Written.rows` is a multiple of it."""
    workers: int = 1
    """Processes that read, tokenize and write; 1: this one."""
    json_keys: tuple[str, ...] = (documents.DEFAULT_KEY,)
    """Fields of a row to take text from; each gives its own pair."""
    txt_documents: str = TXT_DOCUMENTS[0]
    """What a document of a .txt is: of `TXT_DOCUMENTS`."""
    dataset_split: str | None = None
    """Split of a DatasetDict that is read."""
    exclude_sets: frozenset[str] = frozenset()
    """Values of `meta.redpajama_set_name` whose rows are dropped."""
    allow_unmatched_exclude_set: bool = False
    """Accept that a set of `exclude_sets` has no rows. Without it that is an error, but for one of `partitions`."""
    bad_row_rate: float = 0.0
    """Share of the rows that may be bad; they go to `{prefix}.quarantine.jsonl`. 0: the first one ends the job."""
    partitions: int = 1
    """Jobs that the input is divided over, each taking a contiguous part."""
    partition: int = 0
    """Number of this job, from 0."""
    resume: bool = False
    """Reuse what an earlier job finished, and keep what this one finished if it fails."""
    overwrite: bool = False
    """Overwrite a finished pair at `output_prefix`."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A finished pair."""

    prefix: str
    """What `--data-path` takes."""
    receipt: receipt.Receipt
    rows: int
    """Rows of a model for these ids: --vocab-size of the trainer."""
    seconds: float
    """Time of this pair, from the plan to the receipt; the start of the tokenizer and of the workers is before."""


def to_stderr(note: str) -> None:
    """Print a note for the user, above the progress bar."""
    tqdm.write(f"preprocess_data: {note}", file=sys.stderr)


def run(job: PreprocessJob, tell: Tell = to_stderr) -> tuple[Written, ...]:
    """Write one pair for each key.

    `tell` is called with notes on what may be a mistake: files that are skipped or are copies, a missing --append-eod.

    Raises:
        ConfigError: bad input.
        WorkerDied: a worker was killed. Neither leaves half a pair.
    """
    found = _found(job)
    for note in (*found.skipped, *(() if job.append_eod else (NO_EOD,))):
        tell(note)
    files = share(found.files, job.partitions, job.partition)
    tokenizer = tokenizer_files.load(job.tokenizer_model, job.tokenizer_type, job.eod_token)
    for note in tokenizer.notes:
        tell(note)
    if job.vocab_size is not None and job.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"--vocab-size {job.vocab_size}: {tokenizer.path} has {tokenizer.vocab_size} ids, and a model needs a row "
            f"for each; at least --vocab-size {tokenizer.vocab_size}"
        )
    _refuse_taken(job, files, tokenizer.vocabulary)
    with contextlib.closing(Crew(functools.partial(shard.make, Encoder(tokenizer)), job.workers)) as crew:
        return tuple(_write_pair(job, key, files, tokenizer, crew, tell) for key in job.json_keys)


def _found(job: PreprocessJob) -> inputs.Inputs:
    """The files of all partitions."""
    apart = job.workers > 1 and any(map(sources.is_url, job.inputs))
    # workers are forked from this process, and fsspec would leave it a thread
    with contextlib.closing(Crew(inputs.find, 1, apart=apart)) as crew:
        (found,) = crew.in_order([(job.inputs, job.dataset_split)])
    if job.txt_documents != TXT_DOCUMENTS[0] and not any(
        readers.kind(file.name) == readers.TXT for file in found.files
    ):
        raise ConfigError(f"--txt-documents {job.txt_documents}: no --input is a .txt; leave the flag out")
    return found


def _refuse_taken(job: PreprocessJob, files: tuple[RawFile, ...], vocabulary: Vocabulary) -> None:
    """ConfigError where the job would overwrite another's pair. With --resume it may overwrite its own."""
    for key in job.json_keys:
        prefix = prefix_of(job, key)
        own = job.resume and taken.is_of(
            prefix, tokenizer_sha256=vocabulary.sha256, append_eod=job.append_eod, inputs=files
        )
        taken.refuse_taken(prefix, overwrite=job.overwrite or own)


def share(files: tuple[RawFile, ...], partitions: int, partition: int) -> tuple[RawFile, ...]:
    """The files of one of several jobs: contiguous, about equal in bytes, so that merged in order they are all."""
    sizes = [sources.measured(file)[0] for file in files]
    total, before, mine = max(sum(sizes), 1), 0, []
    for file, size in zip(files, sizes, strict=True):
        if min((2 * before + size) * partitions // (2 * total), partitions - 1) == partition:  # the last may be empty
            mine.append(file)
        before += size
    if not mine:
        raise ConfigError(
            f"--partition {partition} of {partitions} gets no file: there are {len(files)} files of {total:,} bytes "
            f"in all; give fewer --partitions"
        )
    return tuple(mine)


def prefix_of(job: PreprocessJob, key: str) -> str:
    """Where the pair of a key goes."""
    part = f"_{job.partition:03}-of-{job.partitions:03}" if job.partitions > 1 else ""
    return f"{job.output_prefix}_{key}_document{part}"


def _write_pair(
    job: PreprocessJob, key: str, files: tuple[RawFile, ...], tokenizer: Tokenizer, crew: Crew[shard.Shard], tell: Tell
) -> Written:
    start, vocabulary = time.monotonic(), tokenizer.vocabulary
    prefix = prefix_of(job, key)
    rules = shard.ShardRules(
        key=key,
        vocabulary=vocabulary,
        append_eod=job.append_eod,
        exclude_sets=job.exclude_sets,
        quarantine=job.bad_row_rate > 0,
    )
    parts = Path(f"{prefix}.parts")
    with indexed.PairWriter(prefix, indexed.token_dtype(vocabulary.vocab_size)) as pair:
        if not job.resume:
            shard.discard(parts)
        parts.mkdir(exist_ok=True)
        try:
            pieces = (piece for file in files for piece in readers.pieces(file, job.txt_documents))
            tasks = ((rules, parts, batch) for batch in batches(pieces))
            with contextlib.closing(crew.in_order(tasks)) as shards:
                assembly = _assemble(job, parts, files, shards, pair, tell)
        except BaseException:
            if not job.resume:
                shard.discard(parts)
            raise
        receipt.path_of(prefix).unlink(missing_ok=True)
    for note in receipt.copies(assembly.inputs):
        tell(note)
    result = receipt.Receipt(
        counts=assembly.counts,
        append_eod=job.append_eod,
        vocab_size=vocabulary.vocab_size,
        eod=vocabulary.eod,
        tokenizer_model=tokenizer.path,
        tokenizer_sha256=vocabulary.sha256,
        json_key=key,
        bin_bytes=indexed.bin_path(prefix).stat().st_size,
        idx_bytes=indexed.idx_path(prefix).stat().st_size,
        fingerprint=indexed.read(prefix).fingerprint,
        inputs=tuple(assembly.inputs),
    )
    receipt.write(prefix, result)
    shard.discard(parts)
    rows = rounded_up(job.vocab_size or vocabulary.vocab_size, job.make_vocab_size_divisible_by)
    return Written(prefix=prefix, receipt=result, rows=rows, seconds=time.monotonic() - start)


def _assemble(
    job: PreprocessJob,
    parts: Path,
    files: tuple[RawFile, ...],
    shards: Iterable[shard.Shard],
    pair: indexed.PairWriter,
    tell: Tell,
) -> _Assembly:
    """Append the shards of all files to `pair` in order."""
    bar = {"total": sum(sources.measured(file)[0] for file in files), "unit": "B", "unit_scale": True}
    with open(parts / "quarantine", "w") as quarantine, tqdm(**bar, desc=Path(pair.prefix).name) as progress:
        assembly = _Assembly(quarantine=quarantine)
        try:
            for made in shards:
                pair.append(indexed.read(made.prefix))
                assembly.add(made)
                assembly.judge(job.bad_row_rate, JUDGED_ROWS)
                seen = assembly.counts
                if seen.rows - made.counts.rows < JUDGED_ROWS <= seen.rows and (told := exclusion.unmatched(seen)):
                    tell(f"so far, {told}")
                progress.set_postfix_str(f"{seen.documents:,} documents, {seen.tokens:,} tokens", refresh=False)
                progress.update(sum(piece.bytes for piece in made.batch))
        except shard.BadRowFound as error:
            row = assembly.rows[error.path] + error.row
            raise ConfigError(
                f"--input {error.path}, row {row}: {error.message} (--bad-row-rate skips such rows)"
            ) from None
    assembly.judge(job.bad_row_rate, 0)
    seen = assembly.counts
    if job.partitions == 1 and not job.allow_unmatched_exclude_set:
        exclusion.refuse_unmatched(seen)
    elif told := exclusion.unmatched(seen):
        tell(told)
    if seen.documents == 0:
        raise ConfigError(
            f"--input {' '.join(job.inputs)}: no documents are left ({seen.empty_documents} empty, "
            f"{sum(seen.dropped.values())} dropped by --exclude-set, {sum(seen.quarantined.values())} bad)"
        )
    kept = taken.quarantined(pair.prefix)
    kept.unlink(missing_ok=True)
    if seen.quarantined:
        (parts / "quarantine").replace(kept)
    return assembly


@dataclass(kw_only=True)
class _Assembly:
    """What has been put together so far."""

    quarantine: TextIO
    """Takes the bad rows, with their place in the file."""
    counts: Counts = field(default_factory=Counts)
    inputs: list[receipt.InputFile] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    """Rows read of each file."""
    last_bad: str = ""

    def add(self, made: shard.Shard) -> None:
        """Take in the next shard."""
        bad: dict[int, list[dict[str, Any]]] = defaultdict(list)
        with open(made.quarantined) as lines:
            for line in lines:
                entry = json.loads(line)
                bad[entry.pop("piece")].append(entry)
        for number, (piece, sha256, rows) in enumerate(zip(made.batch, made.sha256, made.rows, strict=True)):
            path = piece.path
            if sha256 is not None:
                self.inputs.append(receipt.InputFile(path=path, bytes=piece.file_bytes, sha256=sha256))
            for entry in bad[number]:
                entry["row"] += self.rows[path]
                self.quarantine.write(json.dumps({"file": path, **entry}) + "\n")
                self.last_bad = f"{path}, row {entry['row']}: {entry['why']}"
            self.rows[path] += rows
        self.counts += made.counts

    def judge(self, rate: float, at_least: int) -> None:
        """ConfigError if more than `rate` of the rows so far, taken as `at_least` so many, are bad."""
        bad = sum(self.counts.quarantined.values())
        if bad > rate * max(self.counts.rows, at_least):
            raise ConfigError(
                f"--bad-row-rate {rate:g}: {bad:,} of {self.counts.rows:,} rows are bad "
                f"({', '.join(f'{count:,} {kind}' for kind, count in self.counts.quarantined.items())}); "
                f"the last is --input {self.last_bad}"
            )
