"""The command line of the report: what it writes, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def report(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the tool."""
    command = [sys.executable, "tools/report.py", *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_a_page_and_a_picture(real_run: Path, tmp_path: Path) -> None:
    """Of a file whose writer was killed in the middle of a line, twice given; both say where they went."""
    cut = tmp_path / "metrics.jsonl"
    cut.write_bytes(real_run.read_bytes()[:-20])
    page, picture = tmp_path / "new" / "report.html", tmp_path / "loss.png"
    done = report(cut, real_run, "--output", page, "--png", picture)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"wrote        {page}", f"wrote        {picture}"]
    assert done.stderr.startswith(f"warning: {cut}: line ") and done.stderr.count("\n") == 1
    assert page.read_text().startswith("<!DOCTYPE html>") and "is cut short and is left out" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = report(real_run, "--output", page, "--overwrite")
    assert again.returncode == 0 and "is cut short" not in page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("missing.jsonl", "--output", "{home}/a.html"), "missing.jsonl cannot be read: No such file or directory"),
        (("README.md", "--output", "{home}/a.html"), "README.md holds something else than the lines of --metrics-file"),
        (("{run}",), "nothing to write: give --output FILE.html, --png FILE.png or both"),
        (("{run}", "--output", "{taken}"), "exists: name a new file, or give --overwrite"),
        (("{run}", "--png", "{taken}"), "exists: name a new file, or give --overwrite"),
        (("{run}", "--output", "{run}", "--overwrite"), "is a file that is read: name a new file"),
        (("{run}", "--output", "/proc/a.html"), "cannot be written"),
        (("--output", "{home}/a.html"), "RUN.jsonl"),
    ],
)
def test_refusals(words: tuple[str, ...], message: str, real_run: Path, tmp_path: Path) -> None:
    """One message, exit code 2, nothing written."""
    taken = tmp_path / "taken"
    taken.write_text("somebody else's")
    before = real_run.read_bytes()
    done = report(*(word.format(home=tmp_path, run=real_run, taken=taken) for word in words))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert taken.read_text() == "somebody else's" and real_run.read_bytes() == before
