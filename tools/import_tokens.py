"""`tinyllama-import-tokens` from a checkout: see `tinyllama_mcore/commands/import_tokens.py`."""

import sys

from tinyllama_mcore.commands.start import import_tokens

if __name__ == "__main__":
    sys.exit(import_tokens())
