"""Scores of a model by lm-evaluation-harness, beside the paper's: the command line of `tinyllama_mcore.evaluation`.

    python tools/evaluate.py --load runs/tinyllama
    python tools/evaluate.py --checkpoints runs/tinyllama --output scores.jsonl --png figure2.png --watch

See docs/howto/evaluate.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tinyllama_mcore.evaluation.command import main

if __name__ == "__main__":
    # lm-eval imports Hugging Face's package `evaluate`; in the directory of this script it would find this file
    sys.path = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
    sys.exit(main())
