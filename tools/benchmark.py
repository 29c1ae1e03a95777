"""`tinyllama-benchmark` from a checkout: see `tinyllama_mcore/commands/benchmark.py`."""

import sys

from tinyllama_mcore.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
