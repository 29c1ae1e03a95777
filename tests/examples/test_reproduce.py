"""The reproduction in its toy size, on this checkout's own documents, and the decisions in its result."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.reproduce import __main__ as reproduce
from examples.reproduce import corpus, planted, result
from tests.distributed import ranks
from tinyllama_mcore.data import indexed
from tinyllama_mcore.reporting import metrics_file

ITERATIONS = 30


def start(output: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user types it."""
    words = ["-m", "examples.reproduce", "--toy", "--output", str(output), "--train-iters", str(ITERATIONS)]
    return subprocess.run([sys.executable, *words], cwd=ranks.CHECKOUT, capture_output=True, text=True)


@pytest.mark.layouts
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_ways_to_one_curve_and_a_bug_that_shows(tmp_path: Path) -> None:
    """Real processes on real text: the numbers of result.json, and a second start that has nothing left to do."""
    home = tmp_path / "toy"
    done = start(home)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    found = json.loads((home / "result.json").read_text())
    assert found["within"]
    assert max(found["largest_difference"].values()) <= 1e-5
    assert found["repeated"] == 0.0
    assert found["train_tokens"] == ITERATIONS * 16 * 128
    for kind in ("text", "code"):
        assert 1.5 < found["bits_per_byte"]["whole"][kind] < 5  # gzip needs 2 to 3; a byte at random costs 8
        assert found["held_out_loss"]["eos"][kind] > found["held_out_loss"]["whole"][kind] + 0.05
        assert 0 < found["epochs"][kind] < 3
    assert found["eos_middle_loss"]["eos"] < found["eos_middle_loss"]["whole"] - 0.3
    resharded = metrics_file.read(home / "resharded.jsonl")
    assert list(resharded.columns["iteration"]) == list(range(ITERATIONS // 3 + 1, ITERATIONS + 1))
    for name in ("result.md", "report.html", "loss.png"):
        assert (home / name).stat().st_size > 0
    again = start(home)
    assert again.returncode == 0
    assert "\n$ " not in again.stdout


def test_another_setting_in_the_same_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its checkpoints would be gone on with."""
    (tmp_path / reproduce.SETTINGS).write_text("{}")
    assert reproduce.main(["--toy", "--output", str(tmp_path)]) == 2
    assert "holds a reproduction of other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--text", "docs"], "--text and --code go together"),
        (["--text", "nowhere", "--code", "docs"], "nowhere is no directory"),
        (["--train-iters", "31"], "give a multiple of 3, 15 or more"),
        (["--train-iters", "6"], "give a multiple of 3, 15 or more"),
    ],
)
def test_mistakes(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One message, exit code 2, nothing made."""
    assert reproduce.main(["--toy", "--output", str(tmp_path / "new"), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_documents_are_cleaned_and_held_out_whole(tmp_path: Path) -> None:
    """Page edges and tags go; a text that occurs twice is written once; each tenth is held out."""
    own = tmp_path / "own"
    own.mkdir()
    body = "A host that sends a datagram has to know the address of the next hop.\n" * 5
    for number in range(20):
        edge = f"\nPostel              [Page {number}]\n\f\nRFC 791   Internet Protocol   September 1981\n"
        page = f"{number}\n{body}{edge}{body}"
        (own / f"{number}.txt").write_text(page)
    (own / "copy.txt").write_text((own / "3.txt").read_text())
    (own / "page.html").write_text(f"<html><head><title>no</title></head><p>a &lt; b {body}</p></html>")
    (own / "latin.txt").write_bytes(b"\xe9" * 500)
    corpus.write("text", iter([(own, corpus.OWN_ENDINGS["text"])]), tmp_path / "raw")
    kept, held = (
        [json.loads(line)["text"] for line in (tmp_path / "raw" / name / "part-000.jsonl").open()]
        for name in ("text", "text-held-out")
    )
    assert (len(kept), len(held)) == (19, 2)
    assert not set(kept) & set(held)
    everything = "".join(kept + held)
    assert not [word for word in ("[Page", "RFC 791", "\f", "<p>", "title") if word in everything]
    assert "a < b" in everything
    assert corpus.text_bytes(tmp_path / "raw" / "text-held-out") == sum(len(text.encode()) for text in held)


def test_planted_tokens_are_a_third(tmp_path: Path) -> None:
    """Every document keeps its tokens, and EOD follow them."""
    with indexed.PairWriter(tmp_path / "clean", np.dtype(np.uint16)) as pair:
        pair.add(np.array([5, 6, 7, 2, 8, 2]), np.array([4, 2]))
    planted.over_insert(str(tmp_path / "clean"), 2, tmp_path / "eos")
    found = indexed.read(tmp_path / "eos")
    tokens = indexed.TokenReader(found)
    assert [tokens.read(document).tolist() for document in (0, 1)] == [[5, 6, 7, 2, 2, 2], [8, 2, 2]]


def test_curves_are_compared_where_both_are(tmp_path: Path) -> None:
    """By iteration, and a NaN is no agreement."""

    def curve(name: str, first: int, losses: list[float]) -> metrics_file.Metrics:
        rows = [{"iteration": first + i, "consumed_tokens": 1, "lm_loss": loss} for i, loss in enumerate(losses)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return metrics_file.read(tmp_path / name)

    whole = curve("whole", 1, [5.0, 4.0, 3.0, 2.0])
    assert result.difference(whole, curve("late", 3, [3.25, 2.0])) == 0.25
    assert math.isnan(result.difference(whole, curve("bad", 3, [math.nan, 2.0])))


def test_bits_per_byte_of_a_uniform_guess() -> None:
    """A byte-level model that knows nothing costs 8 bits a byte."""
    assert result.bits_per_byte(math.log(256), 1000, 1000) == pytest.approx(8)
