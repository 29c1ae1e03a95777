"""Raw files to one `.bin/.idx` pair and its receipt: read, tokenize in parallel, write in the order of the input.

The parent reads chunks and writes results; workers parse and tokenize. Results are taken in the order of the chunks, so
the bytes do not depend on the number of workers. `tools/preprocess_data.py` is the command line of this file.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinyllama_mcore.config.schema import ConfigError
from tinyllama_mcore.data import indexed, readers, receipt
from tinyllama_mcore.data.tokenizer import SentencePieceTokenizer, Vocabulary
from tinyllama_mcore.data.workers import in_order


@dataclass(frozen=True, kw_only=True)
class PreprocessJob:
    """What to read, and how to turn it into tokens."""

    inputs: tuple[str, ...]
    """Files, folders and globs."""
    output_prefix: str
    """Each key's pair goes to `{output_prefix}_{key}_document`, Megatron-LM's naming."""
    tokenizer_model: str
    """SentencePiece model file."""
    append_eod: bool
    """End each document with EOD."""
    workers: int = 1
    """Processes that tokenize; 1: this one."""
    json_keys: tuple[str, ...] = (readers.DEFAULT_KEY,)
    """Fields of a row to take text from; each gives its own pair."""
    exclude_sets: frozenset[str] = frozenset()
    """Values of `meta.redpajama_set_name` whose rows are dropped."""


@dataclass(frozen=True, kw_only=True)
class ChunkTask:
    """What a worker needs besides the chunk."""

    key: str
    tokenizer_model: str
    vocabulary: Vocabulary
    append_eod: bool
    exclude_sets: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class EncodedChunk:
    """The tokens of the documents of one chunk, end to end, and what was left out."""

    tokens: np.ndarray
    """[sum of lengths], in the dtype of the pair."""
    lengths: np.ndarray
    """int32 [documents]."""
    text_bytes: int
    empty_documents: int
    dropped: Counter[str]
    file_bytes: int


@dataclass(kw_only=True)
class Totals:
    """The running sums of a receipt."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    empty_documents: int = 0
    largest_token_id: int = -1
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, chunk: EncodedChunk) -> None:
        """Count one chunk."""
        self.documents += len(chunk.lengths)
        self.tokens += len(chunk.tokens)
        self.text_bytes += chunk.text_bytes
        self.empty_documents += chunk.empty_documents
        self.dropped.update(chunk.dropped)
        self.largest_token_id = max(self.largest_token_id, int(chunk.tokens.max()) if len(chunk.tokens) else -1)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A finished pair."""

    prefix: str
    """What `--data-path` takes."""
    receipt: receipt.Receipt
    seconds: float
    """From the first byte read to the receipt."""


def run(job: PreprocessJob) -> tuple[Written, ...]:
    """Write one pair for each key. ConfigError for bad input, `workers.WorkerDied`; neither leaves half a pair."""
    files = readers.input_files(job.inputs)
    vocabulary = SentencePieceTokenizer(job.tokenizer_model).vocabulary
    return tuple(_write_pair(job, key, files, vocabulary) for key in job.json_keys)


def _write_pair(job: PreprocessJob, key: str, files: tuple[Path, ...], vocabulary: Vocabulary) -> Written:
    start = time.monotonic()
    prefix = f"{job.output_prefix}_{key}_document"
    task = ChunkTask(
        key=key,
        tokenizer_model=job.tokenizer_model,
        vocabulary=vocabulary,
        append_eod=job.append_eod,
        exclude_sets=job.exclude_sets,
    )
    inputs = tuple(receipt.InputFile(path=str(file), bytes=file.stat().st_size) for file in files)
    totals = Totals(dropped=Counter(dict.fromkeys(sorted(job.exclude_sets), 0)))
    chunks = (chunk for file in files for chunk in readers.chunks(file, key))
    bar = {"total": sum(file.bytes for file in inputs), "unit": "B", "unit_scale": True, "desc": Path(prefix).name}
    with indexed.PairWriter(prefix, indexed.token_dtype(vocabulary.vocab_size)) as pair, tqdm(**bar) as progress:
        for encoded in in_order(functools.partial(encode_chunk, task), chunks, job.workers):
            pair.add(encoded.tokens, encoded.lengths)
            totals.add(encoded)
            progress.set_postfix_str(f"{totals.documents:,} documents, {totals.tokens:,} tokens", refresh=False)
            progress.update(encoded.file_bytes)
        if totals.documents == 0:
            raise ConfigError(
                f"--input {' '.join(job.inputs)}: no documents ({totals.empty_documents} empty, "
                f"{totals.dropped.total()} dropped by --exclude-set)"
            )
        receipt.path_of(prefix).unlink(missing_ok=True)
    result = receipt.Receipt(
        documents=totals.documents,
        tokens=totals.tokens,
        text_bytes=totals.text_bytes,
        empty_documents=totals.empty_documents,
        dropped=dict(totals.dropped),
        append_eod=job.append_eod,
        largest_token_id=totals.largest_token_id,
        vocab_size=vocabulary.vocab_size,
        eod=vocabulary.eod,
        tokenizer_model=job.tokenizer_model,
        tokenizer_sha256=vocabulary.sha256,
        json_key=key,
        bin_bytes=indexed.bin_path(prefix).stat().st_size,
        idx_bytes=indexed.idx_path(prefix).stat().st_size,
        inputs=inputs,
    )
    receipt.write(prefix, result)
    return Written(prefix=prefix, receipt=result, seconds=time.monotonic() - start)


def encode_chunk(task: ChunkTask, chunk: readers.Chunk) -> EncodedChunk:
    """Parse and tokenize one chunk. Runs in a worker."""
    texts: list[str] = []
    empty, dropped = 0, Counter[str]()
    for document in readers.documents(chunk, task.key):
        if document.set_name in task.exclude_sets:
            dropped[document.set_name] += 1
        elif not document.text:
            empty += 1
        else:
            texts.append(document.text)
    tokens = _tokenizer(task.tokenizer_model, task.vocabulary).encode(texts)
    if task.append_eod:
        tokens = [np.append(ids, np.int32(task.vocabulary.eod)) for ids in tokens]
    dtype = indexed.token_dtype(task.vocabulary.vocab_size)
    return EncodedChunk(
        tokens=np.concatenate([np.zeros(0, dtype=dtype), *tokens]).astype(dtype),
        lengths=np.array([len(ids) for ids in tokens], dtype=np.int32),
        text_bytes=sum(len(text.encode()) for text in texts),
        empty_documents=empty,
        dropped=dropped,
        file_bytes=chunk.file_bytes,
    )


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str, vocabulary: Vocabulary) -> SentencePieceTokenizer:
    """The tokenizer, loaded once in each process. It must still be the one that the job began with."""
    tokenizer = SentencePieceTokenizer(path)
    if tokenizer.vocabulary != vocabulary:
        raise ConfigError(f"--tokenizer-model {path}: was changed while it was in use")
    return tokenizer
