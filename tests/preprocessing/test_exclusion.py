"""--exclude-set drops the rows of a set in every shape that says so, and a set that no row is of ends the job."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from tests.preprocessing.test_preprocess import job_of
from tests.raw_files import OF_ROWS, Run, write_rows
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import receipt
from tinyllama_mcore.preprocessing import preprocess
from tinyllama_mcore.preprocessing.merge import merge

SETS = ("RedPajamaGithub", "RedPajamaC4", "RedPajamaGithub", "RedPajamaBook", "RedPajamaC4")
COLUMNAR = (".parquet", ".arrow")
NAMED = {name: [("url", "x"), ("redpajama_set_name", name)] for name in SETS}

SHAPES: dict[str, Callable[[str], Any]] = {
    "an object": lambda name: {"meta": dict(NAMED[name])},
    "JSON in a string": lambda name: {"meta": json.dumps(dict(NAMED[name]))},
    "a flattened column": lambda name: {"meta.redpajama_set_name": name},
    "JSON in bytes": lambda name: {"meta": json.dumps(dict(NAMED[name])).encode()},
    "a map": lambda name: {"meta": NAMED[name]},
}
"""How a row says which set it is of."""
TYPES = {"a map": pyarrow.map_(pyarrow.string(), pyarrow.string())}
ONLY_COLUMNAR = ("JSON in bytes", "a map")

SILENT: dict[str, Any] = {
    "no meta": {},
    "null": {"meta": None},
    "another field": {"meta": {"subset": "RedPajamaGithub"}},
    "a string that is no JSON": {"meta": "{'redpajama_set_name': 'RedPajamaGithub'"},
    "a JSON string that is no object": {"meta": '"RedPajamaGithub"'},
    "a set that is null": {"meta": {"redpajama_set_name": None, "a": "b"}},
}
"""Rows that do not say it."""


def written(path: Path, metas: list[dict[str, Any]], shape: str = "") -> Path:
    """A file of one text a meta."""
    rows = [{"text": f"text {number}", **meta} for number, meta in enumerate(metas)]
    if shape in TYPES:
        schema = pyarrow.schema({"text": pyarrow.string(), "meta": TYPES[shape]})
        return write_rows(path, pyarrow.Table.from_pylist(rows, schema=schema))
    return write_rows(path, rows)


@pytest.mark.parametrize(
    ("shape", "suffix"),
    [(shape, suffix) for shape in SHAPES for suffix in OF_ROWS if suffix in COLUMNAR or shape not in ONLY_COLUMNAR],
)
def test_every_shape_is_read(tmp_path: Path, tokenizer_model: Path, shape: str, suffix: str) -> None:
    """In each format that can hold it."""
    path = written(tmp_path / f"d{suffix}", [SHAPES[shape](name) for name in SETS], shape)
    job = job_of(path, tmp_path / "out", tokenizer_model, exclude_sets=frozenset({"RedPajamaGithub"}))
    seen = preprocess.run(job)[0].receipt.counts
    assert (seen.documents, seen.dropped) == (3, {"RedPajamaGithub": 2})
    assert seen.sets == {"RedPajamaGithub": 2, "RedPajamaC4": 2, "RedPajamaBook": 1}


@pytest.mark.parametrize("suffix", OF_ROWS)
@pytest.mark.parametrize("kind", SILENT)
def test_rows_that_name_no_set_end_the_job(tmp_path: Path, tokenizer_model: Path, suffix: str, kind: str) -> None:
    """Where none does; the flag lets them through; nothing is left of a refused job."""
    path = written(tmp_path / f"d{suffix}", [SILENT[kind]] * 4)
    job = job_of(path, tmp_path / "out", tokenizer_model, exclude_sets=frozenset({"RedPajamaGithub"}))
    with pytest.raises(
        ConfigError,
        match=r"--exclude-set RedPajamaGithub: no row was dropped, because none of 4 rows names .* with --allow",
    ):
        preprocess.run(job)
    assert [left.name for left in tmp_path.iterdir()] == [path.name]
    told: list[str] = []
    seen = preprocess.run(replace(job, allow_unmatched_exclude_set=True), told.append)[0].receipt.counts
    assert (seen.documents, seen.sets) == (4, {"": 4})
    assert "none of 4 rows names its set" in "".join(told)


def raw_of(tmp_path: Path) -> Path:
    """Two files; the set that is dropped is in the second alone."""
    raw = tmp_path / "raw"
    raw.mkdir()
    written(raw / "1.jsonl", [SHAPES["an object"](name) for name in SETS if name != "RedPajamaGithub"])
    written(raw / "2.jsonl.zst", [SHAPES["JSON in a string"](name) for name in SETS] + [{}])
    return raw


@pytest.mark.parametrize("workers", [1, 2])
def test_a_set_that_never_occurs_ends_the_job(tmp_path: Path, tokenizer_model: Path, workers: int) -> None:
    """The nearest name that occurs is told; a resumed job counts what the first one read, and comes to the same."""
    job = job_of(raw_of(tmp_path), tmp_path / "out", tokenizer_model, workers=workers, resume=True)
    wrong = replace(job, exclude_sets=frozenset({"RedPajamaGitHub", "RedPajamaBook"}))
    message = (
        r"--exclude-set RedPajamaGitHub: none of 9 rows belongs to this set; the sets with rows are "
        r"RedPajamaC4 \(4\), RedPajamaBook \(2\), RedPajamaGithub \(2\) "
        r"\(did you mean RedPajamaGithub, not RedPajamaGitHub\?\); name a set"
    )
    for _ in range(2):
        with pytest.raises(ConfigError, match=message):
            preprocess.run(wrong)
    made = {path.name: path.stat().st_mtime_ns for path in Path(f"{tmp_path}/out_text_document.parts").glob("*.json")}
    assert len(made) == 1
    (allowed,) = preprocess.run(replace(wrong, allow_unmatched_exclude_set=True))
    assert allowed.receipt.counts.dropped == {"RedPajamaBook": 2, "RedPajamaGitHub": 0}
    (right,) = preprocess.run(replace(job, exclude_sets=frozenset({"RedPajamaGithub"})))
    assert (right.receipt.counts.documents, right.receipt.counts.sets[""]) == (7, 1)


def test_parts_of_a_whole_are_judged_when_they_are_merged(tmp_path: Path, tokenizer_model: Path) -> None:
    """A part may have no row of the set: that is told, and the whole is refused where no part has one."""
    raw = raw_of(tmp_path)
    for name, refused in (("RedPajamaGithub", False), ("RedPajamaArxiv", True)):
        parts = []
        for number in range(2):
            told: list[str] = []
            job = job_of(raw, tmp_path / name, tokenizer_model, partitions=2, partition=number)
            parts += preprocess.run(replace(job, exclude_sets=frozenset({name})), told.append)
            assert any("belongs to this set" in note for note in told) == (refused or number == 0)
        prefixes = [part.prefix for part in parts]
        if refused:
            with pytest.raises(ConfigError, match=r"--exclude-set RedPajamaArxiv: none of 9 rows belongs to this set"):
                merge(prefixes, str(tmp_path / "merged"), overwrite=True)
        merge(prefixes, str(tmp_path / "merged"), allow_unmatched_exclude_set=refused, overwrite=True)
        slip = receipt.read(tmp_path / "merged")
        assert slip is not None and slip.counts.sets["RedPajamaC4"] == 4


def test_the_tool_ends_with_two(tmp_path: Path, preprocess_data: Run) -> None:
    """One line; told early in a job that goes on for long."""
    written(tmp_path / "1.jsonl", [SHAPES["an object"](name) for name in SETS] * 3001)
    written(tmp_path / "2.jsonl", [SHAPES["an object"]("RedPajamaGithub")])
    flags = ("--input", tmp_path, "--output-prefix", tmp_path / "out", "--append-eod", "--exclude-set")
    done = preprocess_data(*flags, "Books")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "preprocess_data: so far, --exclude-set Books: none of 15,005 rows belongs to this set" in done.stderr
    assert (
        "preprocess_data: --exclude-set Books: none of 15,006 rows belongs to this set; the sets with rows are"
        in done.stderr
    )
    done = preprocess_data(*flags, "Books", "--allow-unmatched-exclude-set")
    assert done.returncode == 0, done.stderr
