"""`tinyllama-benchmark-loader` from a checkout: see `tinyllama_mcore/commands/benchmark_loader.py`."""

import sys

from tinyllama_mcore.commands.start import benchmark_loader

if __name__ == "__main__":
    sys.exit(benchmark_loader())
