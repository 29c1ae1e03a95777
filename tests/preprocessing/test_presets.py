"""The published datasets by name: their files, their field, what is dropped."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import zstandard

from tests.preprocessing.test_preprocess import documents_of
from tests.raw_files import Run, json_lines


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    """Both, as they lie on a disk after a download."""
    for split in ("train", "validation", "test"):
        for chunk, set_name in (("chunk1", "RedPajamaC4"), ("chunk2", "RedPajamaGithub")):
            path = tmp_path / "SlimPajama-627B" / split / chunk / "example_0.jsonl.zst"
            path.parent.mkdir(parents=True)
            path.write_bytes(zstandard.ZstdCompressor().compress(json_lines([f"{split} {chunk}"], set_name)))
    for language in ("python", "c"):
        (tmp_path / "starcoderdata" / language).mkdir(parents=True)
        table = pyarrow.table({"max_stars_count": [1], "id": ["7"], "content": [f"# {language}"]})
        pyarrow.parquet.write_table(table, tmp_path / "starcoderdata" / language / "train-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "flags", "pair", "expected"),
    [
        ("SlimPajama-627B", ("--preset", "slimpajama"), "text", ["train chunk1"]),
        ("SlimPajama-627B", ("--preset", "slimpajama", "--dataset-split", "test"), "text", ["test chunk1"]),
        (
            "SlimPajama-627B",
            ("--preset", "slimpajama", "--exclude-set", "RedPajamaC4"),
            "text",
            ["train chunk2"],
        ),
        ("starcoderdata", ("--preset", "starcoder"), "content", ["# c", "# python"]),
    ],
)
def test_what_a_preset_reads(
    datasets: Path,
    preprocess_data: Run,
    reference: sentencepiece.SentencePieceProcessor,
    folder: str,
    flags: tuple[str, ...],
    pair: str,
    expected: list[str],
) -> None:
    """One split of the whole directory, without GitHub's rows; a flag that is given goes before the preset."""
    done = preprocess_data("--input", datasets / folder, *flags, "--output-prefix", datasets / "out", "--append-eod")
    assert done.returncode == 0, done.stderr
    assert [reference.decode(ids) for ids in documents_of(datasets / f"out_{pair}_document")] == expected


def test_a_preset_that_does_not_fit_is_refused(datasets: Path, preprocess_data: Run) -> None:
    """Another directory, a split that there is not, a split without a preset: what was looked for is told."""
    out = ("--output-prefix", datasets / "out")
    for folder, flags, message in (
        (
            "starcoderdata",
            ("--preset", "slimpajama"),
            "holds no files train/chunk*/*.jsonl.zst, which --preset slim",
        ),
        (
            "starcoderdata",
            ("--preset", "starcoder", "--dataset-split", "test"),
            "test: starcoder has train",
        ),
        ("starcoderdata", ("--dataset-split", "test"), "no --input is a DatasetDict"),
        ("starcoderdata", ("--preset", "pile"), "invalid choice: 'pile'"),
    ):
        done = preprocess_data("--input", datasets / folder, *flags, *out)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
