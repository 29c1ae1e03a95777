"""`tinyllama-evaluate` from a checkout: see `tinyllama_mcore/commands/evaluate.py`."""

import sys

from tinyllama_mcore.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
