"""Level 9: command lines. Each file parses the flags of one command, calls the package, and gives an exit code."""
