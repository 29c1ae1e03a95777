"""`tinyllama-merge-datasets` from a checkout: see `tinyllama_mcore/commands/merge_datasets.py`."""

import sys

from tinyllama_mcore.commands.start import merge_datasets

if __name__ == "__main__":
    sys.exit(merge_datasets())
