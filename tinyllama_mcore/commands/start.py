"""Where every command begins, by any of its doors: its file is imported here, so that what it misses is told.

setup.py's console commands are attributes of this module, named as the scripts of tools/ and examples/, which call them
too; `python -m tinyllama_mcore` calls `start`. Only the standard library is imported before.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence

from tinyllama_mcore.commands.table import COMMANDS, Command
from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.parallel import launch


def start(command: Command, argv: Sequence[str] | None = None) -> int:
    """Run a command to its exit code, with which a rank ends here; argv is the program's own where none is given."""
    code = exit_code(lambda: importlib.import_module(command.module).main(argv))
    if command.of_a_job:
        launch.leave(code)
    return code


def __getattr__(file: str) -> Callable[..., int]:
    """The command of a file: `from tinyllama_mcore.commands.start import preprocess_data`."""
    command = next((command for command in COMMANDS if command.file == file), None)
    if command is None:
        raise AttributeError(f"module {__name__} has no attribute {file}")
    return functools.partial(start, command)
