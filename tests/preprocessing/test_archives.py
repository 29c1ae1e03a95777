"""Members of an archive that are one row stand next to each other, and what is said where they do not."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.preprocessing.test_preprocess import job_of
from tests.raw_files import tar_of
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing import archives, preprocess


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a.txt b.txt a.json b.json", r"a\.json stands apart from a\.txt: .* tar --sort=name -cf SORTED\.tar"),
        ("c.json a.json b.txt a.txt", r"a\.txt stands apart from a\.json: "),
        (
            "a.json b.json a.txt b.txt",
            r"row 1: member a: no key \"text\", .*; a a\.txt has to stand next to it .*--sort",
        ),
    ],
)
def test_members_of_a_row_that_stand_apart(names: str, message: str, tmp_path: Path, tokenizer_model: Path) -> None:
    """Refused with the member's name, and the command that it gives puts them together."""
    fields = {"c.json": b'{"text": "c"}', "a.json": b"{}", "b.json": b"{}"}
    fields |= {"a.json": b'{"text": "x"}'} if names.startswith("c") else {}
    (tmp_path / "d.tar").write_bytes(tar_of((name, fields.get(name, name.encode())) for name in names.split()))
    job = job_of(tmp_path / "d.tar", tmp_path / "out", tokenizer_model)
    with pytest.raises(ConfigError, match=message):
        preprocess.run(job)
    command = archives.SORTED.split(": ")[1].replace("ARCHIVE", "d.tar")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    (tmp_path / "d.tar").unlink()
    (written,) = preprocess.run(replace(job, inputs=(str(tmp_path / "SORTED.tar"),)))
    assert written.receipt.counts.documents == len({name.split(".")[0] for name in names.split()})
