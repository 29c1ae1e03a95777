"""`tinyllama-merge` from a checkout: see `tinyllama_mcore/commands/merge_to_hf.py`."""

import sys

from tinyllama_mcore.commands.merge_to_hf import main

if __name__ == "__main__":
    sys.exit(main())
