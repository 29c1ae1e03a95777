"""Token files of other programs, made by their published formats (`preprocessing/token_files.py` cites them)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

BOS, EOD = 1, 2


def write_ds(path: Path, documents: list[list[int]], width: int = 2) -> Path:
    """A `.ds`, its index and its metadata, as datatrove's TokenizedFile lays them out."""
    dtype = np.uint16 if width == 2 else np.uint32
    np.concatenate([np.array(document, dtype=dtype) for document in documents]).tofile(path)
    np.cumsum([len(document) for document in documents], dtype=np.uint64).tofile(f"{path}.index")
    tokens = sum(map(len, documents))
    Path(f"{path}.metadata").write_text(f"a/tokenizer|{width}\n{tokens}\n{tokens} T")
    return path


def flat(documents: Iterable[list[int]]) -> list[int]:
    """Their tokens, end to end."""
    return list(itertools.chain.from_iterable(documents))


def write_chunks(directory: Path, name: str, tokens: list[int], chunk: int, filler: int | None = BOS) -> list[Path]:
    """Chunks as TinyLlama's PackedDatasetBuilder lays them out; the last one is filled up, or left out (None)."""
    directory.mkdir(exist_ok=True)
    rest = -len(tokens) % chunk
    tokens = tokens[: len(tokens) // chunk * chunk] if filler is None else tokens + [filler] * rest
    paths = []
    for number in range(len(tokens) // chunk):
        paths.append(directory / f"{name}_{number:010d}.bin")
        content = np.array(tokens[number * chunk : (number + 1) * chunk], dtype=np.uint16).tobytes()
        paths[-1].write_bytes(b"LITPKDS" + struct.pack("<QBQ", 1, 8, chunk) + content)
    return paths
