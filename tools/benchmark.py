"""`tinyllama-benchmark` from a checkout: see `tinyllama_mcore/commands/benchmark.py`."""

import sys

from tinyllama_mcore.commands.start import benchmark

if __name__ == "__main__":
    sys.exit(benchmark())
