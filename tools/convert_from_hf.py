"""`tinyllama-import` from a checkout: see `tinyllama_mcore/commands/convert_from_hf.py`."""

import sys

from tinyllama_mcore.commands.convert_from_hf import main

if __name__ == "__main__":
    sys.exit(main())
