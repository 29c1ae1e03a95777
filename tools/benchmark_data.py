"""`tinyllama-benchmark-data` from a checkout: see `tinyllama_mcore/commands/benchmark_data.py`."""

import sys

from tinyllama_mcore.commands.start import benchmark_data

if __name__ == "__main__":
    sys.exit(benchmark_data())
