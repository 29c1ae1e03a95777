"""`tinyllama-plan` from a checkout: see `tinyllama_mcore/commands/plan_layout.py`."""

import sys

from tinyllama_mcore.commands.start import plan_layout

if __name__ == "__main__":
    sys.exit(plan_layout())
