"""The demo's own decisions: what it may empty, and when it calls the model one that has learned.

tests/test_readme.py runs the demo itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples import demo
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import receipt
from tinyllama_mcore.preprocessing import preprocess, sample_corpus
from tinyllama_mcore.reporting.entropy import unigram_entropy


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    """Twice in one directory, once told to: the second begins empty."""
    home = tmp_path / "demo"
    demo.prepare(home, overwrite=False)
    (home / "left.over").touch()
    with pytest.raises(ConfigError, match=r"holds an earlier demo: .*--overwrite"):
        demo.prepare(home, overwrite=False)
    demo.prepare(home, overwrite=True)
    assert [path.name for path in home.iterdir()] == [demo.MARKER]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, checkout: Path) -> None:
    """Exit code 2, one message, nothing lost: by the real interpreter."""
    (tmp_path / "thesis.tex").touch()
    words = [sys.executable, "examples/demo.py", "--output", str(tmp_path)]
    done = subprocess.run(words, cwd=checkout, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "name a new directory" in done.stderr
    assert (tmp_path / "thesis.tex").exists()


def test_a_command_that_fails_ends_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """It is named together with its exit code."""
    with pytest.raises(demo.CommandFailed, match="exit code 3 from: python -c"):
        demo.run("python", "-c", "raise SystemExit(3)")


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, str]]:
    """A tokenizer and one preprocessed pair."""
    home = tmp_path_factory.mktemp("blend")
    raw = sample_corpus.write_raw(home / "raw", 512)
    sample_corpus.train_tokenizer(raw, home / "tokenizer.model", 512)
    job = preprocess.PreprocessJob(
        inputs=(str(raw.slimpajama),),
        output_prefix=str(home / "text"),
        tokenizer_model=str(home / "tokenizer.model"),
        append_eod=True,
    )
    return [(1.0, preprocess.run(job)[0].prefix)]


@pytest.mark.parametrize(("below", "learned"), [(demo.MARGIN + 0.01, True), (demo.MARGIN - 0.01, False)])
def test_learning_is_a_loss_well_below_the_entropy(
    blend: list[tuple[float, str]], below: float, learned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that ends just under the entropy has learned how often tokens come, and no more."""
    made = receipt.read(blend[0][1])
    assert made is not None
    last = unigram_entropy(blend, made.vocab_size) - below
    paths = demo.Paths(home=tmp_path)
    rows = [
        {"iteration": i, "consumed_tokens": 2048 * i, "lm_loss": loss}
        for i, loss in enumerate([9.0, *np.full(demo.LAST, last)], start=1)
    ]
    paths.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert demo.report(paths, blend) is learned
    assert paths.picture.read_bytes().startswith(b"\x89PNG")
    assert "first loss        9.000" in capsys.readouterr().out
