"""What is read and what is not: each file once by whatever name, no caches, no copies of editors, nothing cut short."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tests.preprocessing.test_readers import read
from tests.raw_files import OF_ROWS, json_lines, write_rows
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing import inputs
from tinyllama_mcore.preprocessing.readers import FORMATS, MAY_BE_EMPTY

ROWS = [{"text": f"text {number}"} for number in range(40)]


def names(*patterns: str | Path) -> list[str]:
    """Of the files that the patterns name."""
    return [path.name for path in inputs.find(map(str, patterns)).files]


def test_inputs_are_sorted_and_read_once(tmp_path: Path) -> None:
    """Known bug 3: whatever the order and overlap of the patterns, each file comes once, in the order of its path."""
    for name in ("b/2.jsonl", "a/1.jsonl", "a/10.jsonl.gz", "c.parquet", "b/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_rows(tmp_path / name, ROWS)
    expected = tuple(tmp_path / name for name in ("a/1.jsonl", "a/10.jsonl.gz", "b/2.jsonl", "c.parquet"))
    assert inputs.find([str(tmp_path)]).files == expected
    patterns = [str(tmp_path / "c.parquet"), str(tmp_path / "*"), str(tmp_path / "a")]
    assert inputs.find(patterns).files == expected
    with pytest.raises(ConfigError, match=r"notes\.md: the name must end in \.jsonl, "):
        inputs.find([str(tmp_path / "b/notes.md")])
    with pytest.raises(ConfigError, match=r"--input .*none\*: no such file, and no match"):
        inputs.find([str(tmp_path / "none*")])


SPELLINGS: dict[str, Callable[[Path, str], Path]] = {
    "the same": lambda home, name: home / "a" / name,
    "absolute": lambda home, name: (home / "a" / name).absolute(),
    "through its parent": lambda home, name: home / "a/../a" / name,
    "its directory": lambda home, name: home / "a",
    "its directory, through the parent": lambda home, name: home / "a/../a",
    "a glob": lambda home, name: home / "?" / "*",
    "a link": lambda home, name: _linked(os.symlink, home / "a" / name, home / f"link-{name}"),
    "a hard link": lambda home, name: _linked(os.link, home / "a" / name, home / f"hard-{name}"),
    "a link to its directory": lambda home, name: _linked(os.symlink, home / "a", home / "folder"),
}
"""Ways to name one file, or the directory that holds nothing else."""


def _linked(link: Callable[[Path, Path], None], target: Path, path: Path) -> Path:
    link(target.absolute(), path)
    return path


@pytest.mark.parametrize("suffix", OF_ROWS)
@pytest.mark.parametrize("way", SPELLINGS)
def test_one_file_is_read_once(tmp_path: Path, suffix: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each format and by any two names; another name than the first is told."""
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    plain = write_rows(Path(f"a/d{suffix}"), ROWS)
    other = SPELLINGS[way](Path(), plain.name)
    found = inputs.find([str(plain), str(other)])
    assert len(found.files) == 1
    assert [document.text for document in read(found.files[0])] == [row["text"] for row in ROWS]
    twice = [line for line in found.skipped if "the same file as another one" in line]
    assert len(twice) == (way not in ("the same", "its directory", "a glob"))


def test_folders_behind_links_are_read_once(tmp_path: Path) -> None:
    """Each, in the same order as without links; a link that leads back ends there, and is told."""
    raw, far = tmp_path / "raw", tmp_path / "far"
    for folder in (raw / "b", far / "deep"):
        folder.mkdir(parents=True)
    write_rows(raw / "b/1.jsonl", ROWS)
    write_rows(far / "deep/2.jsonl", ROWS)
    (raw / "c").symlink_to(far)
    (raw / "a").symlink_to(raw / "b")
    (far / "back").symlink_to(raw)
    found = inputs.find([str(raw)])
    assert found.files == (raw / "b/1.jsonl", raw / "c/deep/2.jsonl")
    assert [line for line in found.skipped if "the same directory as another one" in line] == [
        f"skipped {raw}/a, {raw}/c/back: the same directory as another one"
    ]


SIDE = (
    ".ipynb_checkpoints/d-checkpoint{}",
    ".cache/huggingface/download/d{}",
    "_temporary/0/part-0{}",
    "_delta_log/00010.checkpoint{}",
    ".d{}",
    "_d{}",
    "d{}.crc",
    "d{}.part",
    "d{}.incomplete",
)
"""What editors, downloads and Spark leave beside data, by its name for each format."""
SIDE_NAMES = ("cache-0123456789abcdef.arrow", "cache-1_00000_of_00002.arrow", "out_text_document.quarantine.jsonl")
SIDE_NAMES += ("_SUCCESS", "state.json", "dataset_infos.json", "README.md", ".d.crc", "d.jsonl.bz2", "d.xml")


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_lies_beside_data_is_skipped_and_reported(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every format, whatever is in it."""
    monkeypatch.setattr(inputs, "NAMES_SHOWN", 99)
    write_rows(tmp_path / f"d{suffix}", ROWS)
    beside = [*(name.format(suffix) for name in SIDE), *SIDE_NAMES]
    for name in beside:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "in a side file"}\n')
    found = inputs.find([str(tmp_path)])
    assert found.files == (tmp_path / f"d{suffix}",)
    told = "\n".join(found.skipped)
    for name in beside:
        top = name.split("/")[0]
        assert f"{tmp_path}/{top}" in told, told
    for reason in (
        "begins with . or _",
        "cache of Hugging Face's datasets",
        "an earlier job set aside",
        "does not end",
    ):
        assert reason in told


@pytest.mark.parametrize("name", SIDE_NAMES)
def test_a_side_file_named_outright_is_refused(tmp_path: Path, name: str) -> None:
    """By itself, and where a shell's or our pattern names it beside the data."""
    for path in (tmp_path / name, tmp_path / "data-0.arrow"):
        write_rows(path, ROWS)
    for pattern in (tmp_path / name, tmp_path / f"*{name[1:]}"):
        with pytest.raises(
            ConfigError, match=r"is a cache of|is bad rows that|is what Hugging Face|must end in|no such file"
        ):
            inputs.find([str(tmp_path / "data-0.arrow"), str(pattern)])


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_file_that_lost_its_end_passes_for_whole(tmp_path: Path, suffix: str) -> None:
    """Wherever a download stopped, at its first byte too. A text file shows it in its last row."""
    path = write_rows(tmp_path / f"d{suffix}", ROWS)
    whole = path.read_bytes()
    for size in (0, 1, 4, 7, 12, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        if suffix in MAY_BE_EMPTY:
            continue
        with pytest.raises(ConfigError, match=rf"--input .*d{suffix}: .*(has 0 bytes|cannot be read|not a whole)"):
            read(inputs.find([str(tmp_path)]).files[0])
    assert (suffix in MAY_BE_EMPTY) == (suffix in (".jsonl", ".txt"))


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    """A link to nothing, a pipe; in a directory, and named outright."""
    write_rows(tmp_path / "d.jsonl", ROWS)
    (tmp_path / "x.jsonl").symlink_to(tmp_path / "gone")
    for pattern in (tmp_path, tmp_path / "x.jsonl", tmp_path / "*.jsonl"):
        with pytest.raises(ConfigError, match=r"x\.jsonl: cannot be read \(No such file .*\) \(a link to nothing\)"):
            inputs.find([str(pattern)])
    (tmp_path / "x.jsonl").unlink()
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(ConfigError, match=r"x\.jsonl: is not a regular file"):
        inputs.find([str(tmp_path)])


def test_an_arrow_file_is_read_as_a_stream_is(tmp_path: Path) -> None:
    """Polars and Feather write a table of contents around the same batches."""
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(tmp_path / "d.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=7)
    assert [document.text for document in read(tmp_path / "d.arrow")] == [row["text"] for row in ROWS]
    (tmp_path / "d.arrow").write_bytes(b"FEA1 and more")
    with pytest.raises(ConfigError, match=r"d\.arrow: cannot be read .*not a whole Arrow stream, nor an Arrow file"):
        read(tmp_path / "d.arrow")


def test_a_zstd_file_is_read_or_refused_in_its_own_words(tmp_path: Path) -> None:
    """Frames of other libraries (no sizes, no checksum, skippable ones between); a dictionary and no zstd at all."""
    lines = [json_lines([f"text {number}" * 1000]) for number in range(300)]
    path = tmp_path / "d.jsonl.zst"
    small, wide = (zstandard.ZstdCompressionParameters.from_level(19, window_log=log) for log in (10, 27))
    frames = [
        zstandard.ZstdCompressor(level=1, write_content_size=False).compress(b"".join(lines[:100])),
        b"\x53\x2a\x4d\x18\x05\x00\x00\x00abcde",
        zstandard.ZstdCompressor(compression_params=small).compress(b""),
        zstandard.ZstdCompressor(compression_params=small).compress(b"".join(lines[100:200])),
        zstandard.ZstdCompressor(write_checksum=True, threads=2).compress(b""),
        zstandard.ZstdCompressor(compression_params=wide).compress(b"".join(lines[200:])),
    ]
    path.write_bytes(b"".join(frames))
    assert len(read(path)) == 300
    path.write_bytes(b"".join(frames[:1]) + frames[1][:-1])
    with pytest.raises(ConfigError, match="it ends inside a zstd frame"):
        read(path)
    dictionary = zstandard.train_dictionary(1 << 12, lines)
    path.write_bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(lines[0]))
    with pytest.raises(ConfigError, match=rf"compressed with a dictionary \(number {dictionary.dict_id()}\)"):
        read(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match="bytes b'version ' do not begin a zstd frame"):
        read(path)


BYTES = 120_000_000
"""Of equal rows."""
MIB_ALLOWED = 64
"""More than before its first row that a reader may take; a row is 850 bytes, of an archive 85,000."""
# not ru_maxrss, which begins with what the process that forked this one took
READER = r"""
import re, sys
from pathlib import Path
import pyarrow.parquet
from tinyllama_mcore.preprocessing import readers
most = lambda: int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10
before = most()
rows = sum(1 for piece in readers.pieces(Path(sys.argv[1])) for row in readers.rows(piece, "text"))
print(rows, most() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", OF_ROWS)
def test_a_small_file_of_many_rows_takes_little_memory(tmp_path: Path, suffix: str, checkout: Path) -> None:
    """However few bytes the rows are packed in."""
    text = "a sentence of a text " * (4000 if ".tar" in suffix else 40)  # tarfile is slow in writing members
    rows, path = BYTES // len(text), tmp_path / f"d{suffix}"
    if suffix == ".parquet":
        table = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays([0] * rows, [text])})
        pyarrow.parquet.write_table(table, path, row_group_size=rows)
    elif suffix == ".arrow":
        table = pyarrow.table({"text": [text] * 1000})
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with pyarrow.ipc.new_stream(path, table.schema, options=options) as stream:
            for _ in range(0, rows, 1000):
                stream.write_table(table)
        rows = -(-rows // 1000) * 1000
    else:
        write_rows(path, [{"text": text}] * rows)
    done = subprocess.run(
        [sys.executable, "-c", READER, path], capture_output=True, text=True, check=True, cwd=checkout
    )
    found, grew = map(int, done.stdout.split())
    assert found == rows and grew < MIB_ALLOWED, f"{path.stat().st_size:,} bytes took {grew} MiB"
