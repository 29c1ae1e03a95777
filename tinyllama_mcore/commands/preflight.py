"""What is wrong with a job's machines, before it runs: the command line of `tinyllama_mcore.preflight`.

    torchrun --nproc_per_node 8 -m tinyllama_mcore preflight --save runs/tinyllama --data-path data/text
    srun tinyllama-preflight --save runs/tinyllama

Started on all ranks, by the run's own launcher. See docs/howto/multi-node.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinyllama_mcore.config import cli
from tinyllama_mcore.config.errors import ConfigError, RunFailed
from tinyllama_mcore.config.flag_values import from_zero
from tinyllama_mcore.config.flags import Parser, add, named
from tinyllama_mcore.config.paths import suffixed
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.parallel.launchers import Launch
from tinyllama_mcore.planning import gpus
from tinyllama_mcore.pretrain import as_rank

FREE_GIB, PATIENCE_S = 40.0, 30.0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(
        description="Look at the machines of a job, from all of its ranks, and print what would keep a run from "
        "starting, end it or slow it down; one row a check.",
        allow_abbrev=False,
    )
    save = replace(named("--save"), words="where checkpoints will go", otherwise="none: not looked at", read=Path)
    add(parser, save)
    data = replace(named("--data-path"), words="datasets of the run, spelled as there", otherwise="none: not looked at")
    add(parser, data)
    for name in ("--data-path-from", "--valid-data-path"):
        add(parser, replace(named(name), otherwise="none: not looked at"))
    parser.add_argument(
        "--gpu",
        metavar="NAME|FILE.json",
        help="the planner's row that the network is compared with (default: none; that of the GPU that is found)",
    )
    parser.add_argument(
        "--free-gib",
        type=from_zero("GiB"),
        default=FREE_GIB,
        metavar="X",
        help=f"GiB that have to be free at --save: three checkpoints of the 1.1B recipe (default: {FREE_GIB:g})",
    )
    parser.add_argument(
        "--patience",
        type=from_zero("seconds"),
        default=PATIENCE_S,
        metavar="S",
        help=f"seconds that a check may take, and that ranks wait for each other (default: {PATIENCE_S:g})",
    )
    add(parser, replace(named("--local_rank"), otherwise="none: not used"))
    given = parser.parse_args(argv)
    if given.patience == 0:
        raise ConfigError(f"--patience 0 waits for nobody: it must be above 0, such as {PATIENCE_S:g}")
    return given


def preflight(given: argparse.Namespace, place: Launch) -> int:
    """Try the checks; 1 where there is a problem."""
    row = gpus.find(given.gpu) if given.gpu is not None else None
    data = cli.datasets(given)
    if problem := next(filter(None, (suffixed(flag, prefix) for flag, prefix in data)), None):
        raise ConfigError(problem)
    from tinyllama_mcore.preflight.check import Asked
    from tinyllama_mcore.preflight.checks import CHECKS
    from tinyllama_mcore.preflight.session import run

    launch.publish(place)
    asked = Asked(save=given.save, data=data, gpu=row, free_gib=given.free_gib, patience_s=given.patience)
    try:
        return run(CHECKS, asked, place, lambda line: print(line, flush=True))
    except RunFailed as error:
        print(f"problem: {error}", file=sys.stderr, flush=True)
        return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Take part as one process of the job; returns the exit code."""
    launch.quiet_third_parties()
    words = sys.argv[1:] if argv is None else argv
    return as_rank(lambda place: preflight(parse(words), place))
