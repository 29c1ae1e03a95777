"""`tinyllama-preprocess` from a checkout: see `tinyllama_mcore/commands/preprocess_data.py`."""

import sys

from tinyllama_mcore.commands.preprocess_data import main

if __name__ == "__main__":
    sys.exit(main())
