"""`tinyllama-merge-datasets` from a checkout: see `tinyllama_mcore/commands/merge_datasets.py`."""

import sys

from tinyllama_mcore.commands.merge_datasets import main

if __name__ == "__main__":
    sys.exit(main())
