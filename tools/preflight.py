"""`tinyllama-preflight` from a checkout: see `tinyllama_mcore/commands/preflight.py`."""

import sys

from tinyllama_mcore.commands.start import preflight

if __name__ == "__main__":
    sys.exit(preflight())
