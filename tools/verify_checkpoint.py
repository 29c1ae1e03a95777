"""`tinyllama-verify` from a checkout: see `tinyllama_mcore/commands/verify_checkpoint.py`."""

import sys

from tinyllama_mcore.commands.start import verify_checkpoint

if __name__ == "__main__":
    sys.exit(verify_checkpoint())
