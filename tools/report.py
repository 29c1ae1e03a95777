"""`tinyllama-report` from a checkout: see `tinyllama_mcore/commands/report.py`."""

import sys

from tinyllama_mcore.commands.start import report

if __name__ == "__main__":
    sys.exit(report())
