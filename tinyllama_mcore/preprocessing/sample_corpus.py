"""The built-in corpus: real text and code in the real datasets' shapes, from what every Python installation carries.

SlimPajama-shaped `.jsonl.zst` (help topics, licence, docstrings; GitHub rows included, so that they must be dropped),
StarCoder-shaped `.parquet` (library source), a Llama-style tokenizer trained on both, and two preprocessed pairs.
Neighbours: `examples/demo.py` runs the tools on the raw files itself; a run without --data-path takes `ensure`.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import zstandard

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing import documents, inputs, preprocess, readers

SLIMPAJAMA_WEIGHT = 0.693584  # jzhang38/TinyLlama, pretrain/tinyllama.py, train_data_config
STARCODER_WEIGHT = 0.306416
VERSION = 2
"""Version of the corpus; bump it to rebuild."""
GITHUB_SET = "RedPajamaGithub"
SMALL_VOCABULARY = 4_096
SMALL_CODE_BYTES = 1_500_000
"""Source that is enough to learn a vocabulary of up to SMALL_VOCABULARY; a larger one takes the whole library."""
SMALL_PROSE_BYTES = 1_500_000
"""Docstrings that are enough, likewise."""
LEFT_OUT_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"})
DOCUMENTS_PER_FRAME = 64
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LLAMA_TOKENIZER: dict[str, Any] = {
    # the trainer options inside Llama-2's own tokenizer.model
    "model_type": "bpe",
    "character_coverage": 0.99995,
    "split_digits": True,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "max_sentencepiece_length": 16,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "unk_surface": " \u2047 ",
}


@dataclass(frozen=True, kw_only=True)
class RawCorpus:
    """The raw files, as the real datasets would lie there."""

    slimpajama: Path
    """Directory of .jsonl.zst files."""
    starcoder: Path
    """Directory of .parquet files, one directory a language."""


@dataclass(frozen=True, kw_only=True)
class SampleData:
    """What a run needs in place of --data-path and --tokenizer-model."""

    blend: tuple[tuple[float, str], ...]
    """(weight, prefix), as `DataConfig.blend`."""
    tokenizer_model: str
    """SentencePiece model."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One document."""

    set_name: str
    text: str


def ensure(directory: str | Path, vocab_size: int) -> SampleData:
    """Prepare everything under `directory`, once for each vocabulary size; later calls find it there.

    Processes that start at once wait for the first; one that was killed half-way is begun again by the next.
    """
    home = Path(directory) / f"vocab-{vocab_size}-v{VERSION}"
    ready = home / "READY"
    with _locked(home.parent / f".{home.name}.lock"):
        if not ready.exists():
            shutil.rmtree(home, ignore_errors=True)
            _prepare(home, vocab_size)
            ready.touch()
    return SampleData(
        blend=(
            (SLIMPAJAMA_WEIGHT, str(home / "slimpajama_text_document")),
            (STARCODER_WEIGHT, str(home / "starcoder_text_document")),
        ),
        tokenizer_model=str(home / "tokenizer.model"),
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`; the system frees it when its holder dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise ConfigError(f"the sample corpus cannot be written to {path.parent} ({error.strerror})") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare(home: Path, vocab_size: int) -> None:
    raw = write_raw(home, vocab_size)
    model = home / "tokenizer.model"
    train_tokenizer(raw, model, vocab_size)
    for folder, excluded in ((raw.slimpajama, {GITHUB_SET}), (raw.starcoder, ())):
        preprocess.run(
            preprocess.PreprocessJob(
                inputs=(str(folder),),
                output_prefix=str(home / folder.name),
                tokenizer_model=str(model),
                append_eod=True,
                exclude_sets=frozenset(excluded),
            )
        )


def write_raw(directory: str | Path, vocab_size: int) -> RawCorpus:
    """Write the raw files below `directory`: about 4 MB, or the whole library for a vocabulary that needs more."""
    small = vocab_size <= SMALL_VOCABULARY
    code = list(_up_to(SMALL_CODE_BYTES if small else None, _library()))
    prose = [*_help_topics(), *_licence(), *_up_to(SMALL_PROSE_BYTES if small else None, _docstrings())]
    rows = [_Row(set_name=GITHUB_SET, text=row.text) for row in code[::10]] + prose
    rows.sort(key=lambda row: hashlib.sha256(row.text.encode()).digest())  # any contiguous part is a fair sample
    raw = RawCorpus(slimpajama=Path(directory) / "slimpajama", starcoder=Path(directory) / "starcoder")
    _write_jsonl_zst(raw.slimpajama / "train" / "chunk1" / "example_train_0.jsonl.zst", rows)
    _write_parquet(raw.starcoder / "python" / "train-00000-of-00001.parquet", code)
    return raw


def train_tokenizer(raw: RawCorpus, model: str | Path, vocab_size: int) -> None:
    """Train a Llama-style SentencePiece BPE of `vocab_size` pieces on what preprocessing keeps of the raw files."""
    import sentencepiece

    lines = (line for text in _kept_texts(raw) for line in text.split("\n") if line)  # so no piece holds a newline
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=written,
            vocab_size=vocab_size,
            num_threads=1,
            minloglevel=2,
            **LLAMA_TOKENIZER,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"no tokenizer of {vocab_size} pieces can be trained on the built-in corpus: {error}"
        ) from None
    Path(model).write_bytes(written.getvalue())


def _kept_texts(raw: RawCorpus) -> Iterator[str]:
    key, decode = documents.DEFAULT_KEY, documents.json_decoder()
    for file in inputs.find([str(raw.slimpajama), str(raw.starcoder)]).files:
        for row in itertools.chain.from_iterable(readers.rows(piece, key) for piece in readers.pieces(file)):
            document = documents.document(row, key, decode)
            if document.set_name != GITHUB_SET:
                yield document.text


def _library() -> Iterator[_Row]:
    """The source files of the standard library, in an order that mixes its packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = [file.relative_to(root) for file in root.rglob("*.py")]
    kept = [name for name in names if LEFT_OUT_FOLDERS.isdisjoint(name.parts)]
    for name in sorted(kept, key=lambda name: hashlib.sha256(name.as_posix().encode()).digest()):
        text = (root / name).read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield _Row(set_name="", text=text)


def _docstrings() -> Iterator[_Row]:
    """What the modules of the standard library say of themselves, one document a module."""
    for source in _library():
        try:
            nodes = list(ast.walk(ast.parse(source.text)))
        except SyntaxError:  # a template, or a file of another encoding
            continue
        documented = (node for node in nodes if isinstance(node, DOCUMENTED))
        text = "\n\n".join(filter(None, map(ast.get_docstring, documented)))
        if text:
            yield _Row(set_name="RedPajamaStackExchange", text=text)


def _help_topics() -> Iterator[_Row]:
    """The language reference that `help()` shows."""
    for name in sorted(topics):
        yield _Row(set_name="RedPajamaWikipedia", text=topics[name])


def _licence() -> Iterator[_Row]:
    file = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    if file.is_file():  # some distributions move it
        yield _Row(set_name="RedPajamaCommonCrawl", text=file.read_text(encoding="utf-8"))


def _up_to(size: int | None, rows: Iterator[_Row]) -> Iterator[_Row]:
    """Rows until their texts add up to `size` characters; all of them if it is None."""
    for row in rows:
        yield row
        if size is not None:
            size -= len(row.text)
            if size <= 0:
                return


def _write_jsonl_zst(path: Path, rows: list[_Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for first in range(0, len(rows), DOCUMENTS_PER_FRAME):
            lines = [
                json.dumps({"text": row.text, "meta": {"redpajama_set_name": row.set_name}}) + "\n"
                for row in rows[first : first + DOCUMENTS_PER_FRAME]
            ]
            file.write(zstandard.ZstdCompressor().compress("".join(lines).encode()))


def _write_parquet(path: Path, rows: list[_Row]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"id": [str(number) for number in range(len(rows))], "content": [row.text for row in rows]})
    pyarrow.parquet.write_table(table, path, row_group_size=DOCUMENTS_PER_FRAME)
