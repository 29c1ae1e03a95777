"""`tinyllama-inspect` from a checkout: see `tinyllama_mcore/commands/inspect_data.py`."""

import sys

from tinyllama_mcore.commands.start import inspect_data

if __name__ == "__main__":
    sys.exit(inspect_data())
