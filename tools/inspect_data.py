"""`tinyllama-inspect` from a checkout: see `tinyllama_mcore/commands/inspect_data.py`."""

import sys

from tinyllama_mcore.commands.inspect_data import main

if __name__ == "__main__":
    sys.exit(main())
