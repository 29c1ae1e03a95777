"""A tokenizer trained on the spot, and the means to write raw files in every format that is read."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import zstandard

from tinyllama_mcore.preprocessing.readers import FORMATS
from tinyllama_mcore.preprocessing.sample_corpus import LLAMA_TOKENIZER

Run = Callable[..., subprocess.CompletedProcess[str]]
OF_ROWS = tuple(suffix for suffix in FORMATS if suffix != ".txt")
"""Formats of files that hold many rows, with fields."""


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Some 40 documents of prose."""
    return [topics[name] for name in sorted(topics)[:40]]


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A Llama-style tokenizer of 600 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts[:10] for line in text.split("\n")),
        model_writer=model,
        vocab_size=600,
        minloglevel=2,
        **LLAMA_TOKENIZER,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def reference(tokenizer_model: Path) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece itself, with the same model."""
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))


@pytest.fixture
def preprocess_data(checkout: Path, tokenizer_model: Path) -> Run:
    """`tools/preprocess_data.py` in a process of its own, with the tokenizer and these flags."""

    def run(*flags: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        tool = [sys.executable, str(checkout / "tools/preprocess_data.py"), "--tokenizer-model", str(tokenizer_model)]
        return subprocess.run([*tool, *map(str, flags)], capture_output=True, text=True, timeout=timeout)

    return run


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A file of these rows, in the format that its name says."""
    if path.suffix in (".parquet", ".arrow"):
        table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(list(rows))
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(table, path, row_group_size=7)
        else:  # what `datasets` keeps in a directory that it saved
            with pyarrow.ipc.new_stream(path, table.schema) as stream:
                stream.write_table(table, max_chunksize=7)
        return path
    if ".tar" in path.suffixes:
        content = tar_of((f"{number:05}.json", json.dumps(row).encode()) for number, row in enumerate(rows))
    elif ".json" in path.suffixes:
        content = json.dumps(list(rows)).encode()
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content))
    return path


def tar_of(members: Iterable[tuple[str, bytes]]) -> bytes:
    """An archive of files with these names."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def json_lines(texts: Iterable[str], set_name: str | None = None) -> bytes:
    """SlimPajama-shaped rows."""
    meta = {} if set_name is None else {"meta": {"redpajama_set_name": set_name}}
    return "".join(json.dumps({"text": text, **meta}) + "\n" for text in texts).encode()
