"""`tinyllama-preflight` from a checkout: see `tinyllama_mcore/commands/preflight.py`."""

import sys

from tinyllama_mcore.commands.preflight import main

if __name__ == "__main__":
    sys.exit(main())
