"""Pairs put together are the pair of one uninterrupted job, and only what was made alike is put together."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_indexed import write
from tests.preprocessing.test_preprocess import job_of
from tests.raw_files import json_lines
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import indexed, receipt
from tinyllama_mcore.preprocessing import inputs, preprocess
from tinyllama_mcore.preprocessing.merge import merge


def test_partitions_merged_are_the_whole(
    tmp_path: Path, tokenizer_model: Path, texts: list[str], checkout: Path
) -> None:
    """Byte for byte, receipt included but for the time it took; every file is in one partition."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(7):
        (raw / f"{number}.jsonl").write_bytes(json_lines(texts[number::7] * (1 + number % 3)))
    (whole,) = preprocess.run(job_of(raw, tmp_path / "whole", tokenizer_model))
    parts = [
        preprocess.run(job_of(raw, tmp_path / "part", tokenizer_model, partitions=3, partition=number))[0].prefix
        for number in range(3)
    ]
    assert [Path(part).name for part in parts] == [f"part_text_document_00{number}-of-003" for number in range(3)]
    out = tmp_path / "merged"
    tool = [sys.executable, checkout / "tools/merge_datasets.py", "--output-prefix", out, "--input"]
    files = sorted(tmp_path.glob("part_text_document_*-of-003.*"))
    done = subprocess.run([*map(str, [*tool, *files])], capture_output=True, text=True)
    assert done.returncode == 0 and f"{whole.receipt.counts.tokens:,} tokens" in done.stdout, done.stderr
    for suffix in (".bin", ".idx"):
        assert Path(f"{out}{suffix}").read_bytes() == Path(f"{whole.prefix}{suffix}").read_bytes()
    merged = receipt.read(out)
    assert merged is not None
    untimed = [replace(slip, counts=replace(slip.counts, seconds=0)) for slip in (merged, whole.receipt)]
    assert untimed[0] == untimed[1]
    assert receipt.check(out, whole.receipt.vocabulary).sequences == whole.receipt.counts.documents
    with pytest.raises(ConfigError, match=r"--partition \d+ of 99 gets no file: there are 7 files"):
        preprocess.share(inputs.find([str(raw)]).files, 99, 1)


def test_pairs_of_others_are_merged_as_megatron_does(tmp_path: Path) -> None:
    """Without receipts too; the same bytes as Megatron's builder gives when it adds the indices."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefixes = [str(write(tmp_path / name, [3, 50, 7], seed=seed)) for seed, name in enumerate("ab")]
    _, slip = merge(prefixes, str(tmp_path / "ours"))
    assert slip is None
    builder = IndexedDatasetBuilder(str(tmp_path / "megatron.bin"), dtype=np.uint16)
    for prefix in prefixes:
        builder.add_index(prefix)
    builder.finalize(str(tmp_path / "megatron.idx"))
    assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / "megatron.bin").read_bytes()
    ours = indexed.read(tmp_path / "ours")
    assert ours.lengths().tolist() == [3, 50, 7, 3, 50, 7]


def test_what_was_made_otherwise_is_refused(tmp_path: Path, corpus: list[str]) -> None:
    """Another dtype, another tokenizer or EOD rule, a pair twice, the output among the inputs; nothing is written."""
    small, large = (str(write(tmp_path / name, [5], vocab_size=v)) for name, v in (("s", 600), ("l", 70_000)))
    out = str(tmp_path / "out")
    for prefixes, message in (
        ([small, large], r"l: tokens are stored as int32, those of .*s as uint16"),
        ([small, small], "is given twice, or is also the output"),
        ([small, str(tmp_path / "none")], r"--input .*none: neither .*none\.bin nor"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge(prefixes, out)
    fields = json.loads(receipt.path_of(corpus[1]).read_text())
    receipt.path_of(small).write_text(json.dumps({**fields, "append_eod": False}))
    with pytest.raises(
        ConfigError, match=r"its append_eod is False, that of .* is True; only datasets made with the same append_eod"
    ):
        merge([corpus[1], small], out)
    assert not list(tmp_path.glob("out*"))


SPELLINGS: dict[str, Callable[[Path], Path]] = {
    "the same": lambda prefix: prefix,
    "relative": lambda prefix: Path(os.path.relpath(prefix)),
    "through its parent": lambda prefix: prefix.parent / ".." / prefix.parent.name / prefix.name,
    "a link": lambda prefix: _linked(os.symlink, prefix),
    "a hard link": lambda prefix: _linked(os.link, prefix),
}
"""Other names of a pair."""


def _linked(link: Callable[[str, str], None], prefix: Path) -> Path:
    for ending in (".bin", ".idx"):
        link(f"{prefix}{ending}", f"{prefix}_linked{ending}")
    return Path(f"{prefix}_linked")


@pytest.mark.parametrize("way", SPELLINGS)
def test_a_pair_is_merged_once(tmp_path: Path, way: str) -> None:
    """Whatever name it is given by, as an input twice and as input and output; the pair is left as it was."""
    pair, other = write(tmp_path / "a", [3, 50, 7]), write(tmp_path / "b", [5], seed=1)
    before = Path(f"{pair}.bin").read_bytes()
    again = SPELLINGS[way](Path(pair))
    with pytest.raises(ConfigError, match="is given twice, or is also the output"):
        merge([str(pair), str(other), str(again)], str(tmp_path / "out"))
    if way != "a hard link":  # is another file once one of them is replaced
        with pytest.raises(ConfigError, match="is given twice, or is also the output"):
            merge([str(pair), str(other)], str(again))
    assert Path(f"{pair}.bin").read_bytes() == before and not list(tmp_path.glob("out*"))


def test_parts_of_different_wholes_are_not_merged(tmp_path: Path, tokenizer_model: Path, texts: list[str]) -> None:
    """A raw file that both were made from would be there twice; a copy of one is told, as when it is preprocessed."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(4):
        (raw / f"{number}.jsonl").write_bytes(json_lines(texts[number : number + 1]))

    def part(number: int, of: int) -> str:
        job = job_of(raw, tmp_path / "part", tokenizer_model, partitions=of, partition=number, overwrite=True)
        return preprocess.run(job)[0].prefix

    with pytest.raises(ConfigError, match=r"was made from .*raw/\d\.jsonl, and so was .*; its documents would occur"):
        merge([part(0, 2), part(1, 4)], str(tmp_path / "out"))
    (raw / "1.jsonl").rename(raw / "0.jsonl")
    shutil.copy(raw / "0.jsonl", raw / "4.jsonl")
    told: list[str] = []
    merge([part(0, 2), part(1, 2)], str(tmp_path / "out"), tell=told.append)
    assert told == [f"{raw}/4.jsonl holds the same bytes as {raw}/0.jsonl: its documents occur twice"]
