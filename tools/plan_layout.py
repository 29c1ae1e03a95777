"""`tinyllama-plan` from a checkout: see `tinyllama_mcore/commands/plan_layout.py`."""

import sys

from tinyllama_mcore.commands.plan_layout import main

if __name__ == "__main__":
    sys.exit(main())
