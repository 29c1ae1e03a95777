"""Every format gives the same documents in the same order; bad rows and broken files are named."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tests.raw_files import json_lines
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing import columns, documents, readers


def read(path: Path, key: str = "text") -> list[documents.Document]:
    """All documents of a file; BadRow, with its row, for the first that is none."""
    found = []
    rows = itertools.chain.from_iterable(readers.rows(piece, key) for piece in readers.pieces(path))
    for number, row in enumerate(rows, 1):
        if isinstance(row, bytes) and row.isspace():
            continue
        try:
            found.append(documents.document(row, key, documents.json_decoder()))
        except documents.BadRow as error:
            raise documents.BadRow(error.kind, f"row {number}: {error.message}") from None
    return found


def zstd_frames(parts: list[bytes]) -> bytes:
    """One zstd file of many frames, as `cat a.zst b.zst` makes."""
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)


def write_parquet(path: Path, columns: dict[str, list[object]], rows_in_group: int = 7) -> None:
    """A table of many row groups."""
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_in_group)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow"])
def test_each_format(tmp_path: Path, texts: list[str], suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts and sets come back, whatever the pieces, whose bytes add up to the file's; a Hugging Face directory too."""
    monkeypatch.setattr(readers, "PIECE_BYTES", 5000)
    monkeypatch.setattr(columns, "ROWS_TOGETHER", 3)
    path = tmp_path / f"d{suffix}"
    rows = [json_lines([text], "RedPajamaBook") for text in texts]
    if suffix == ".parquet":
        meta = [{"redpajama_set_name": "RedPajamaBook"}] * len(texts)
        write_parquet(path, {"text": list(texts), "meta": meta})
    elif suffix == ".arrow":  # what `datasets` keeps in a directory that it saved
        table = pyarrow.table({"meta": [{"redpajama_set_name": "RedPajamaBook"}] * len(texts), "text": texts})
        with pyarrow.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table, max_chunksize=7)
    else:
        pack = {
            ".jsonl": b"".join,
            ".jsonl.gz": lambda parts: gzip.compress(b"".join(parts)),
            ".jsonl.zst": zstd_frames,
        }
        path.write_bytes(pack[suffix](rows))
    assert read(path) == [documents.Document(text=text, set_name="RedPajamaBook") for text in texts]
    pieces = readers.pieces(path)
    assert (len(pieces) > 3) == (suffix in (".jsonl", ".parquet"))
    assert sum(piece.bytes for piece in pieces) == path.stat().st_size


@pytest.mark.parametrize("size", range(1, 24))
def test_each_line_is_in_one_piece(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a file is cut: inside lines, at their ends, in lines longer than a piece, without a last newline."""
    monkeypatch.setattr(readers, "PIECE_BYTES", size)
    lines = [b"a\n", b"\n", b"bcdefghijklmnopqrstuvwxyz\n", b"01\n", b"end"]
    (tmp_path / "d.jsonl").write_bytes(b"".join(lines))
    pieces = readers.pieces(tmp_path / "d.jsonl")
    assert [row for piece in pieces for row in readers.rows(piece, "text")] == lines


def test_one_frame_and_one_huge_line(tmp_path: Path) -> None:
    """A line far longer than a chunk, in one frame."""
    text = "0123456789" * 500_000
    (tmp_path / "d.jsonl.zst").write_bytes(zstd_frames([json_lines([text, "b"])]))
    assert [document.text for document in read(tmp_path / "d.jsonl.zst")] == [text, "b"]


def test_starcoder_column(tmp_path: Path) -> None:
    """In Parquet `content` stands in for the default key where there is no `text`, and for no other key."""
    write_parquet(tmp_path / "code.parquet", {"id": ["1"], "content": ["x = 1"]})
    write_parquet(tmp_path / "both.parquet", {"content": ["no"], "text": ["yes"]})
    assert [document.text for document in read(tmp_path / "code.parquet")] == ["x = 1"]
    assert [document.text for document in read(tmp_path / "both.parquet")] == ["yes"]
    with pytest.raises(ConfigError, match=r'no column "body", it has id, content: name one with --json-keys'):
        read(tmp_path / "code.parquet", "body")


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    """But they count as lines of the file."""
    (tmp_path / "d.jsonl").write_bytes(b'\n{"text": "a"}\n  \n{"text": "b"}\n\n{"txt": 1}')
    with pytest.raises(documents.BadRow, match=r'row 6: no key "text", it has txt'):
        read(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        (b'{"text": "a"', "broken JSON", "Expecting ',' delimiter"),
        (b'{"text": 5}', "wrong type", '"text" must be a string, not int'),
        (b'{"text": null}', "wrong type", '"text" must be a string, not NoneType'),
        (b'["text"]', "wrong type", "a row must be an object, not list"),
        (b"{}", "missing key", 'no key "text", it has none: name one with --json-keys'),
        (b'{"text": "\\ud800"}', "lone surrogate", '"text" has a lone surrogate, which is not a character, at 0'),
        (b'{"text": "\xff"}', "invalid UTF-8", "can't decode byte 0xff"),
        (b"[" * 100_000, "broken JSON", "recursion"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: bytes, kind: str, message: str) -> None:
    """Kind and reason."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(json_lines(["good", "good"]) + row + b"\n")
    with pytest.raises(documents.BadRow) as caught:
        read(path)
    assert caught.value.kind == kind and caught.value.message.startswith("row 3: ") and message in caught.value.message


def test_parquet_that_is_no_utf8(tmp_path: Path) -> None:
    """Writers that do not check leave such columns; the row is bad, its neighbours are not."""
    column = pyarrow.StringArray.from_buffers(3, *pyarrow.array([b"good", b"\xff", b"good"]).buffers()[1:])
    write_parquet(tmp_path / "d.parquet", {"text": column})
    with pytest.raises(documents.BadRow, match=r"row 2: .*0xff"):
        read(tmp_path / "d.parquet")


def test_files_cut_short_are_named(tmp_path: Path, texts: list[str]) -> None:
    """A download that stopped is an error, never a smaller dataset; zstandard's own reader takes it for the end."""
    rows = json_lines(texts)
    write_parquet(tmp_path / "d.parquet", {"text": list(texts)})
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(rows))
    (tmp_path / "d.jsonl.zst").write_bytes(zstd_frames([rows[:100_000], rows[100_000:]]))
    for name, message in (
        ("d.jsonl.gz", "Compressed file ended"),
        ("d.jsonl.zst", r"near byte \d+ of \d+: it ends inside a zstd frame"),
        ("d.parquet", "not a whole Parquet file"),
    ):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])
        with pytest.raises(ConfigError, match=rf"{name}: .*{message}"):
            read(tmp_path / name)


def test_json_with_every_escape(tmp_path: Path) -> None:
    """What json.dumps can write, json rows give back."""
    text = "".join(map(chr, range(0x250))) + "\U0001f600"
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": text}))
    assert read(tmp_path / "d.jsonl")[0].text == text
