"""`tinyllama-evaluate` from a checkout: see `tinyllama_mcore/commands/evaluate.py`."""

import sys

from tinyllama_mcore.commands.start import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
