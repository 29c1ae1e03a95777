"""The pair is Megatron's, byte for byte; a pair that is not whole is refused by name and figure."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import indexed


def write(prefix: Path, lengths: list[int], *, vocab_size: int = 600, seed: int = 0) -> Path:
    """A pair of random documents."""
    rng = np.random.default_rng(seed)
    with indexed.PairWriter(prefix, indexed.token_dtype(vocab_size)) as pair:
        for half in (lengths[: len(lengths) // 2], lengths[len(lengths) // 2 :]):  # documents come in bulk
            pair.add(rng.integers(0, vocab_size, sum(half)), np.array(half))
    return prefix


@pytest.mark.parametrize("vocab_size", [600, 65_499, 65_500, 128_256])
def test_bytes_are_megatrons(tmp_path: Path, vocab_size: int) -> None:
    """The same documents through Megatron's IndexedDatasetBuilder give the same two files."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    lengths = [3, 1, 500, 7, 64]
    ours = write(tmp_path / "ours", lengths, vocab_size=vocab_size)
    dtype = DType.optimal_dtype(vocab_size)
    tokens = np.fromfile(f"{ours}.bin", dtype=dtype)
    builder = IndexedDatasetBuilder(str(tmp_path / "megatron.bin"), dtype=dtype)
    for document in np.split(tokens, np.cumsum(lengths)[:-1]):
        builder.add_document(document.tolist(), [len(document)])
    builder.finalize(str(tmp_path / "megatron.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"megatron{suffix}").read_bytes()


def test_what_the_headers_say(tmp_path: Path) -> None:
    """Counts, dtype and lengths come back."""
    info = indexed.check(write(tmp_path / "d", [3, 1, 500]), 600)
    assert (info.sequences, info.tokens, info.dtype, info.lengths().tolist()) == (3, 504, np.uint16, [3, 1, 500])


def test_an_exception_leaves_nothing_and_keeps_the_old_pair(tmp_path: Path) -> None:
    """A job that fails half-way neither leaves its half nor harms what was there."""
    prefix = write(tmp_path / "d", [5, 5])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), indexed.PairWriter(prefix, np.dtype(np.uint16)) as pair:
        pair.add(np.zeros(9), np.array([9]))
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_job_left_is_written_over(tmp_path: Path) -> None:
    """A stale partial file does not get into the next pair."""
    (tmp_path / "d.bin.partial").write_bytes(b"x" * 999)
    write(tmp_path / "d", [5])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.bin", "d.idx"]
    assert (tmp_path / "d.bin").stat().st_size == 10


def test_two_writers_of_one_prefix_are_refused(tmp_path: Path) -> None:
    """The second one, while the first is at work."""
    with indexed.PairWriter(tmp_path / "d", np.dtype(np.uint16)) as pair:
        pair.add(np.zeros(4), np.array([4]))
        with (
            pytest.raises(ConfigError, match="another job is writing"),
            indexed.PairWriter(tmp_path / "d", np.dtype(np.uint16)),
        ):
            pass
    assert indexed.check(tmp_path / "d", 600).tokens == 4


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    """Neither file, and each one alone."""
    prefix = tmp_path / "d"
    with pytest.raises(ConfigError, match=r"neither .*d\.bin nor .*d\.idx exists"):
        indexed.check(prefix, 600)
    for missing, other in (("bin", "idx"), ("idx", "bin")):
        write(prefix, [5])
        (tmp_path / f"d.{missing}").unlink()
        with pytest.raises(ConfigError, match=rf"d\.{missing} is missing beside .*d\.{other}"):
            indexed.check(prefix, 600)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Truncated .bin, truncated .idx, bad magic, unknown dtype: with the figures."""
    prefix = write(tmp_path / "d", [50, 50])
    tokens, index = (tmp_path / "d.bin").read_bytes(), (tmp_path / "d.idx").read_bytes()
    assert len(index) == 34 + 2 * 20 + 8
    for bin_bytes, idx_bytes, message in (
        (tokens[:-2], index, r"d\.bin has 198 bytes where .*d\.idx needs 200 \(100 tokens of uint16\)"),
        (tokens, index[:-8], r"d\.idx has 74 bytes where its header promises 82 \(2 sequences\)"),
        (tokens, b"PK" + index[2:], r"d\.idx \(82 bytes\) is not a Megatron index: bad magic"),
        (tokens, b"", r"d\.idx \(0 bytes\) is not a Megatron index"),
        (tokens, index[:17] + struct.pack("<B", 99) + index[18:], r"version 1, dtype code 99"),
    ):
        (tmp_path / "d.bin").write_bytes(bin_bytes)
        (tmp_path / "d.idx").write_bytes(idx_bytes)
        with pytest.raises(ConfigError, match=message):
            indexed.check(prefix, 600)


def test_a_dtype_that_cannot_hold_the_vocabulary_is_refused(tmp_path: Path) -> None:
    """uint16 tokens cannot be of a vocabulary of 128,256; int32 tokens may be of a small one."""
    with pytest.raises(ConfigError, match="stored as uint16, which cannot hold a vocabulary of 128256"):
        indexed.check(write(tmp_path / "small", [5]), 128_256)
    assert indexed.check(write(tmp_path / "large", [5], vocab_size=128_256), 600).dtype == np.int32


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    """Equal lengths, equal fingerprint, wherever they lie; one other length, another fingerprint."""
    prints = [
        indexed.check(write(tmp_path / name, lengths), 600).fingerprint
        for name, lengths in (("a", [3, 4, 5]), ("b", [3, 4, 5]), ("c", [4, 3, 5]))
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("vocab_size", [600, 70_000])
def test_tokens_are_read_by_position(tmp_path: Path, vocab_size: int) -> None:
    """Any stretch of any document, to its end where no length is given."""
    lengths = [3, 1, 500]
    pair = indexed.read(write(tmp_path / "d", lengths, vocab_size=vocab_size))
    documents = np.split(np.fromfile(tmp_path / "d.bin", dtype=pair.dtype), np.cumsum(lengths)[:-1])
    reader = indexed.TokenReader(pair)
    for number, document in enumerate(documents):
        assert reader.read(number).tolist() == document.tolist()
        assert reader.read(number, 1).tolist() == document[1:].tolist()
    assert reader.read(2, 100, 7).tolist() == documents[2][100:107].tolist()
    assert pair.bounds().tolist() == [0, 1, 2, 3]
