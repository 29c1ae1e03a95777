"""`tinyllama-merge` from a checkout: see `tinyllama_mcore/commands/merge_to_hf.py`."""

import sys

from tinyllama_mcore.commands.start import merge_to_hf

if __name__ == "__main__":
    sys.exit(merge_to_hf())
