"""Scores of a model by lm-evaluation-harness, beside the paper's: the command line of `tinyllama_mcore.evaluation`.

    tinyllama-evaluate --load runs/tinyllama
    tinyllama-evaluate --checkpoints runs/tinyllama --output scores.jsonl --png figure2.png --watch

See docs/howto/evaluate.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tinyllama_mcore.evaluation import command


def main(argv: Sequence[str] | None = None) -> int:
    """Score, with the exit code of `command.main`.

    lm-eval imports Hugging Face's package `evaluate`: the directory of a script of that name must not be searched.
    """
    sys.path[:] = [place for place in sys.path if not (Path(place) / "evaluate.py").is_file()]
    return command.main(argv)
