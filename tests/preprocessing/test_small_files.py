"""Small files share a shard: what is written, counted and told is what each alone gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.preprocessing.test_preprocess import ROWS, job_of
from tests.raw_files import json_lines
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data.receipt import Receipt
from tinyllama_mcore.preprocessing import piece, preprocess, shard
from tinyllama_mcore.preprocessing.piece import Piece

FILES = 150
"""More than two batches."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pieces of each shard that is made, in order."""
    seen: list[int] = []
    make = shard.make

    def counted(*arguments: object) -> shard.Shard:
        found = make(*arguments)  # type: ignore[arg-type]
        seen.append(len(found.batch))
        return found

    monkeypatch.setattr(shard, "make", counted)
    return seen


def _told(receipt: Receipt) -> Receipt:
    return replace(receipt, counts=replace(receipt.counts, seconds=0.0), inputs=())


def test_many_small_files(tmp_path: Path, tokenizer_model: Path, texts: list[str], made: list[int]) -> None:
    """The bytes and counts of the same texts as JSON lines; a checksum for each file."""
    raw = tmp_path / "raw"
    raw.mkdir()
    words = [f"{number} {texts[number % len(texts)][:200]}" for number in range(FILES)]
    for number, text in enumerate(words):
        (raw / f"{number:04}.txt").write_text(text)
    (tmp_path / "lines.jsonl").write_bytes(json_lines(words))
    (files,) = preprocess.run(job_of(raw, tmp_path / "files", tokenizer_model))
    assert made == [64, 64, 22]
    (lines,) = preprocess.run(job_of(tmp_path / "lines.jsonl", tmp_path / "lines", tokenizer_model))
    for suffix in (".bin", ".idx"):
        assert Path(f"{files.prefix}{suffix}").read_bytes() == Path(f"{lines.prefix}{suffix}").read_bytes()
    text_bytes = sum(len(text.encode()) for text in words)
    assert (files.receipt.counts.rows, files.receipt.counts.text_bytes) == (FILES, text_bytes)
    assert [Path(file.path).name for file in files.receipt.inputs] == [f"{number:04}.txt" for number in range(FILES)]
    assert _told(files.receipt) == _told(lines.receipt)


@pytest.mark.parametrize("alone", [False, True])
def test_bad_rows_are_told_of_their_file(
    alone: bool, tmp_path: Path, tokenizer_model: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """File and row of each, whether shards are shared or not; the first one ends a job that allows none."""
    monkeypatch.setattr(piece, "BATCH_PIECES", 1 if alone else 64)
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(6):
        lines = [json_lines([f"text {number} {row}"]) for row in range(3)]
        if number in (2, 4):
            lines.insert(number // 2, ROWS["broken JSON"])
        (raw / f"{number}.jsonl").write_bytes(b"".join(lines))
    job = job_of(raw, tmp_path / "out", tokenizer_model, resume=True)
    with pytest.raises(ConfigError, match=r"2\.jsonl, row 2: "):
        preprocess.run(job)
    (written,) = preprocess.run(replace(job, bad_row_rate=0.2))
    kept = [json.loads(line) for line in Path(f"{written.prefix}.quarantine.jsonl").read_text().splitlines()]
    assert [(Path(entry["file"]).name, entry["row"]) for entry in kept] == [("2.jsonl", 2), ("4.jsonl", 3)]
    assert set(made[-1:]) == {1 if alone else 6}
    assert set(kept[0]) == {"file", "row", "kind", "why", "content"}


@pytest.fixture
def a_piece() -> Callable[[int], Piece]:
    """A piece of so many bytes."""
    return lambda size: Piece(path="d", file_bytes=size, version="", start=0, stop=size, bytes=size)


def test_a_batch_is_small(a_piece: Callable[[int], Piece]) -> None:
    """Pieces of a MiB or more are alone; a batch is neither above that nor has more than its number of pieces."""
    sizes = [5, piece.BATCH_BYTES, 1, piece.BATCH_BYTES - 1, 1, *[0] * 70]
    batches = list(piece.batches(map(a_piece, sizes)))
    assert [[each.bytes for each in batch] for batch in batches][:3] == [[5], [sizes[1]], [1, sizes[3]]]
    assert [len(batch) for batch in batches] == [1, 1, 2, 64, 7]
    url = replace(a_piece(1), path="s3://bucket/d")
    assert list(map(len, piece.batches([a_piece(1), a_piece(1), url, url, a_piece(0), a_piece(0)]))) == [2, 1, 1, 2]
