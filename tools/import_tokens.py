"""`tinyllama-import-tokens` from a checkout: see `tinyllama_mcore/commands/import_tokens.py`."""

import sys

from tinyllama_mcore.commands.import_tokens import main

if __name__ == "__main__":
    sys.exit(main())
