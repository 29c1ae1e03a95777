"""`tinyllama-preprocess` from a checkout: see `tinyllama_mcore/commands/preprocess_data.py`."""

import sys

from tinyllama_mcore.commands.start import preprocess_data

if __name__ == "__main__":
    sys.exit(preprocess_data())
