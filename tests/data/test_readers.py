"""Every format gives the same documents in the same order; bad rows and broken files are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tests.data.conftest import json_lines
from tinyllama_mcore.config.schema import ConfigError
from tinyllama_mcore.data import readers


def read(path: Path, key: str = "text") -> list[readers.Document]:
    """All documents of a file."""
    return [document for chunk in readers.chunks(path, key) for document in readers.documents(chunk, key)]


def zstd_frames(parts: list[bytes]) -> bytes:
    """One zstd file of many frames, as `cat a.zst b.zst` makes."""
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)


def write_parquet(path: Path, columns: dict[str, list[object]], rows_in_group: int = 7) -> None:
    """A table of many row groups."""
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_in_group)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_each_format(tmp_path: Path, texts: list[str], suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts, sets and sizes come back, in many chunks whose bytes add up to the file's."""
    monkeypatch.setattr(readers, "CHUNK_BYTES", 5000)
    monkeypatch.setattr(readers, "PARQUET_ROWS", 3)
    path = tmp_path / f"d{suffix}"
    rows = [json_lines([text], "RedPajamaBook") for text in texts]
    if suffix == ".parquet":
        meta = [{"redpajama_set_name": "RedPajamaBook"}] * len(texts)
        write_parquet(path, {"text": list(texts), "meta": meta})
    else:
        pack = {
            ".jsonl": b"".join,
            ".jsonl.gz": lambda parts: gzip.compress(b"".join(parts)),
            ".jsonl.zst": zstd_frames,
        }
        path.write_bytes(pack[suffix](rows))
    assert read(path) == [readers.Document(text=text, set_name="RedPajamaBook") for text in texts]
    chunks = list(readers.chunks(path, "text"))
    assert len(chunks) > 3
    assert sum(chunk.file_bytes for chunk in chunks) == path.stat().st_size


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
    with pytest.raises(ConfigError, match=r'no column "body", only id, content: name one with --json-keys'):
        read(tmp_path / "code.parquet", "body")


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    """But they count as lines of the file."""
    (tmp_path / "d.jsonl").write_bytes(b'\n{"text": "a"}\n  \n{"text": "b"}\n\n{"txt": 1}')
    with pytest.raises(ConfigError, match=r'd\.jsonl, row 6: no key "text", only txt'):
        read(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"text": "a"', "Expecting ',' delimiter"),
        (b'{"text": 5}', '"text" must be a string, not int'),
        (b'{"text": null}', '"text" must be a string, not NoneType'),
        (b'["text"]', "a row must be an object, not list"),
        (b"{}", 'no key "text", only none: name one with --json-keys'),
        (b'{"text": "\\ud800"}', '"text" has a lone surrogate, which is no character, at 0'),
        (b'{"text": "\xff"}', "can't decode byte 0xff"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: bytes, message: str) -> None:
    """File, row and reason."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(json_lines(["good", "good"]) + row + b"\n")
    with pytest.raises(ConfigError, match=r"--input .*d\.jsonl, row 3: ") as caught:
        read(path)
    assert message in str(caught.value)


def test_files_cut_short_are_named(tmp_path: Path, texts: list[str]) -> None:
    """A download that stopped is an error, never a smaller dataset; zstandard's own reader takes it for the end."""
    rows = json_lines(texts)
    write_parquet(tmp_path / "d.parquet", {"text": list(texts)})
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(rows))
    (tmp_path / "d.jsonl.zst").write_bytes(zstd_frames([rows[:100_000], rows[100_000:]]))
    for name, message in (
        ("d.jsonl.gz", "Compressed file ended"),
        ("d.jsonl.zst", "ends inside a zstd frame"),
        ("d.parquet", "not a whole Parquet file"),
    ):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])
        with pytest.raises(ConfigError, match=rf"{name}: .*{message}"):
            read(tmp_path / name)


def test_inputs_are_sorted_and_read_once(tmp_path: Path) -> None:
    """Known bug 3: whatever the order and overlap of the patterns, each file comes once, in the order of its path."""
    names = ["b/2.jsonl", "a/1.jsonl", "a/10.jsonl.gz", "c.parquet", "b/.hidden.jsonl", "b/notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = tuple(tmp_path / name for name in ("a/1.jsonl", "a/10.jsonl.gz", "b/2.jsonl", "c.parquet"))
    assert readers.input_files([str(tmp_path)]) == expected
    assert readers.input_files([str(tmp_path / "c.parquet"), str(tmp_path / "*"), str(tmp_path / "a")]) == expected
    with pytest.raises(ConfigError, match=r"notes\.txt: the name must end in \.jsonl, "):
        readers.input_files([str(tmp_path / "b/notes.txt")])
    with pytest.raises(ConfigError, match=r"--input .*none\*: no such file, and no match"):
        readers.input_files([str(tmp_path / "none*")])


def test_json_with_every_escape(tmp_path: Path) -> None:
    """What json.dumps can write, json rows give back."""
    text = "".join(map(chr, range(0x250))) + "\U0001f600"
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": text}))
    assert read(tmp_path / "d.jsonl")[0].text == text
