"""Read every byte of a run's checkpoints: the command line of `tinyllama_mcore.checkpoint.selection.inspect`.

    tinyllama-verify --load runs/tinyllama

Needs neither a GPU nor a launcher. See docs/reference/checkpoints.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinyllama_mcore.checkpoint import layout, selection
from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.config.flags import add, named


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags: `load` and `iteration`."""
    parser = argparse.ArgumentParser(
        description="Compare checkpoints with the sizes and checksums in their manifests; one line each.",
        allow_abbrev=False,
    )
    add(parser, replace(named("--load"), words="directory that a run saved to", read=Path), required=True)
    add(parser, replace(named("--iteration"), words="the one checkpoint to check", otherwise="all"))
    return parser.parse_args(argv)


def verify(directory: Path, iteration: int | None) -> int:
    """Print a line for each checkpoint; 1 where one is damaged. ConfigError where there is none."""
    named = layout.find(directory, iteration)
    finished = [layout.folder(directory, found) for found in layout.iterations(directory)]
    damaged = 0
    for folder in [named] if iteration is not None else finished:
        problems = selection.inspect(folder)
        damaged += bool(problems)
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        print(f"{folder}: {'; '.join(problems) if problems else f'whole, {size:,} bytes'}", flush=True)
    return 1 if damaged else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; 1 where a checkpoint is damaged, 2 for a user's mistake."""
    given = parse(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: verify(given.load, given.iteration))
