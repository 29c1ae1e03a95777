"""`tinyllama-import` from a checkout: see `tinyllama_mcore/commands/convert_from_hf.py`."""

import sys

from tinyllama_mcore.commands.start import convert_from_hf

if __name__ == "__main__":
    sys.exit(convert_from_hf())
