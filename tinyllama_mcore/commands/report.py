"""A run, or several beside each other, as one HTML page to look at: the command line of `reporting.page`.

    tinyllama-report runs/mine/metrics.jsonl --output runs/mine/report.html
    tinyllama-report runs/one.jsonl runs/two.jsonl --output both.html --png both.png

Reads what --metrics-file wrote, while a run trains too. See docs/howto/watch.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyllama_mcore.config import atomic, packages
from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.flags import Parser
from tinyllama_mcore.config.paths import unwritable_file
from tinyllama_mcore.reporting import metrics_file, page, plot

BEGINS = {"--output": b"<!DOCTYPE html>", "--png": b"\x89PNG"}
"""Flag -> how the files begin that it writes: others are not overwritten."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(description="What a run did, as one HTML page or as a picture.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN.jsonl", help="files that --metrics-file of the trainer named")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="write the page (default: do not)")
    parser.add_argument("--png", type=Path, metavar="FILE.png", help="draw the loss as a picture (default: do not)")
    parser.add_argument(
        "--overwrite", action="store_true", help="write over what --output or --png names (default: refuse it)"
    )
    return parser.parse_args(argv)


def refuse_taken(given: argparse.Namespace) -> None:
    """ConfigError where nothing is asked for, or what is asked for cannot be written or may not be written over."""
    named = [(flag, path) for flag, path in (("--output", given.output), ("--png", given.png)) if path is not None]
    if not named:
        raise ConfigError("nothing to write: give --output FILE.html, --png FILE.png or both")
    if given.png is not None:
        packages.require("matplotlib")
    for flag, path in named:
        if any(path.resolve() == Path(run).resolve() for run in given.runs):
            raise ConfigError(f"{flag} {path} is a file that is read: name a new file")
        if problem := unwritable_file(path):
            raise ConfigError(f"{flag} {path}: cannot be written ({problem}); name a writable file")
        if path.exists() and not given.overwrite:
            raise ConfigError(f"{flag} {path} exists: name a new file, or give --overwrite")
        if path.exists() and path.stat().st_size and not path.read_bytes().startswith(BEGINS[flag]):
            raise ConfigError(f"{flag} {path} is not what this tool writes there, and is not overwritten: name another")
    if given.output is not None and given.png is not None and given.output.resolve() == given.png.resolve():
        raise ConfigError(f"--output and --png both name {given.png}: name two files")


def report(given: argparse.Namespace) -> None:
    """Read, and write what is asked for."""
    refuse_taken(given)
    runs = [metrics_file.read(path) for path in dict.fromkeys(given.runs)]
    for run in runs:
        if run.damage:
            print(f"warning: {run.label}: {run.damage}", file=sys.stderr)
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(given.output, page.render(runs))
        print(f"wrote        {given.output}")
    if given.png is not None:
        plot.plot_loss(runs, given.png, title="training loss")
        print(f"wrote        {given.png}")


def main(argv: Sequence[str] | None = None) -> int:
    """Report; 2 for a user's mistake."""
    return exit_code(lambda: report(parse(sys.argv[1:] if argv is None else argv)))
