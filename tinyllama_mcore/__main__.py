"""`python -m tinyllama_mcore`: lists the commands; with the name of one, starts it, under a launcher too.

    python -m tinyllama_mcore preprocess --help
    torchrun --nproc_per_node 2 -m tinyllama_mcore pretrain --deepspeed_config zero1
    deepspeed --module tinyllama_mcore pretrain --deepspeed_config zero1

Neighbour: `commands.table` has the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from tinyllama_mcore.commands.start import start
from tinyllama_mcore.commands.table import COMMANDS, Command
from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.strict_json import did_you_mean


def lines() -> Iterator[str]:
    """The commands, one a line."""
    yield "usage: python -m tinyllama_mcore COMMAND [flags], which is tinyllama-COMMAND [flags]"
    width = max(len(command.name) for command in COMMANDS)
    yield from (f"  {command.name:<{width}}  {command.does}" for command in COMMANDS)


def chosen(argv: Sequence[str]) -> tuple[Command, list[str]]:
    """The command that is named, and its arguments.

    The name is the first word that is no flag: the deepspeed launcher puts --local_rank before the program's own
    arguments (DeepSpeed 0.19.8, launcher/launch.py), and the command gets it.

    Raises:
        ConfigError: no command is named, or one that does not exist.
    """
    rest = list(argv)
    name = next((word for word in rest if not word.startswith("-")), None)
    if name is None:
        raise ConfigError(f"no command before {' '.join(rest)}; name one of {', '.join(c.name for c in COMMANDS)}")
    found = next((command for command in COMMANDS if command.name == name), None)
    if found is None:
        hint = did_you_mean(name, [command.name for command in COMMANDS])
        raise ConfigError(f"unknown command {name}{hint or '; python -m tinyllama_mcore lists them'}")
    rest.remove(name)
    return found, rest


def main(argv: Sequence[str]) -> int:
    """List, or start a command; its exit code, and 2 for a user's mistake."""
    if not argv or argv[0] in ("-h", "--help"):
        print(*lines(), sep="\n")
        return 0
    command, rest = chosen(argv)
    sys.argv = [command.program, *rest]  # argparse takes the program's name from there
    return start(command, rest)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
