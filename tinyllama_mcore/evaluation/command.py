"""The command line of `tinyllama-evaluate`: flags, refusals before any work, exit code.

Neighbours: `series` does the work, one model after another.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.config import packages
from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.flag_values import whole
from tinyllama_mcore.config.flags import Parser, add, named
from tinyllama_mcore.config.paths import unwritable_file
from tinyllama_mcore.evaluation import models, paper, scores, series, tables
from tinyllama_mcore.evaluation.harness import DTYPES, RUN_CODE, Asking, Harness
from tinyllama_mcore.hf.parity import Mismatch

INTERRUPTED = 130


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(
        description="Score models with lm-evaluation-harness, beside the paper's Tables 2 and 3.",
        allow_abbrev=False,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--load", type=Path, metavar="DIR", help="a run's directory or a Hugging Face model (default: none)"
    )
    which.add_argument(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        help="a run's directory: evaluate every checkpoint in it (default: none)",
    )
    add(parser, replace(named("--iteration"), words="checkpoint of --load", otherwise="the newest finished one"))
    parser.add_argument(
        "--tasks",
        default="table2",
        metavar="NAMES",
        help=f"{', '.join(paper.TABLES)} or lm-eval's names of tasks, with commas between (default: table2)",
    )
    parser.add_argument(
        "--include-path", type=Path, metavar="DIR", help="task files that come before lm-eval's own (default: none)"
    )
    _add_outputs(parser)
    _add_conditions(parser)
    return parser.parse_args(argv)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """What is written, and when."""
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.jsonl",
        help="keep scores here, and evaluate no model twice (default: do not)",
    )
    parser.add_argument(
        "--png", type=Path, metavar="FILE.png", help="draw the scores of --checkpoints over tokens (default: do not)"
    )
    parser.add_argument("--overwrite", action="store_true", help="write over what --png names (default: refuse it)")
    parser.add_argument(
        "--again", action="store_true", help="evaluate models whose scores --output has already (default: do not)"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="go on with every checkpoint that the run of --checkpoints saves, until its last (default: do not)",
    )


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    """How models are merged and asked."""
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="bf16", help="dtype of weights and arithmetic (default: bf16)"
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cuda where there is a GPU, else cpu)"
    )
    parser.add_argument("--batch-size", type=whole(1), default=8, metavar="N", help="requests at once (default: 8)")
    parser.add_argument(
        "--limit", type=whole(1), metavar="N", help="questions of each task, for a quick look (default: none)"
    )
    add(parser, replace(named("--tokenizer-model"), otherwise="the one that the run was given", read=Path))
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not compare the logits of a merged checkpoint with the training model's (default: compare)",
    )
    parser.add_argument(
        RUN_CODE,
        dest="run_code",
        action="store_true",
        help="run code that the model wrote, where a task does (humaneval); also needs HF_ALLOW_CODE_EVAL=1 "
        "(default: refuse)",
    )


def refuse(given: argparse.Namespace) -> None:
    """ConfigError where flags contradict each other, or what they name cannot be written."""
    for flag, is_given, needs in (
        ("--iteration", given.iteration is not None, "--load"),
        ("--png", given.png is not None, "--checkpoints"),
        ("--watch", given.watch, "--checkpoints"),
    ):
        if is_given and (given.load is None) == (needs == "--load"):
            raise ConfigError(f"{flag} goes with {needs}; give that, or leave {flag} out")
    if given.again and given.output is None:
        raise ConfigError("--again does nothing without --output, which has the scores of an earlier run; leave it out")
    if given.png is None:
        return
    packages.require("matplotlib")
    if problem := unwritable_file(given.png):
        raise ConfigError(f"--png {given.png}: cannot be written ({problem}); name a writable file")
    if given.png.exists() and not given.overwrite:
        raise ConfigError(f"--png {given.png} exists: name a new file, or give --overwrite")


def asking(given: argparse.Namespace) -> Asking:
    """How models are asked, by the flags."""
    return Asking(
        columns=paper.columns(given.tasks),
        include_path=given.include_path,
        dtype=given.dtype,
        device=device(given.device),
        batch_size=given.batch_size,
        limit=given.limit,
        run_code=given.run_code,
    )


def device(name: str | None) -> str:
    """The device to compute on. ConfigError for one that is not here: lm-eval would take another without a word."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{index}" for index in range(gpus))]
    if name is not None and name not in here:
        raise ConfigError(f"--device {name} is not on this machine; it has: {', '.join(here)}")
    return name or ("cuda" if gpus else "cpu")


def wanted(given: argparse.Namespace) -> list[models.Model]:
    """The models that are there. ConfigError where there is none."""
    if given.load is not None:
        return [models.find(given.load, given.iteration)]
    layout.find(given.checkpoints)
    return models.listed(given.checkpoints)


def evaluate(given: argparse.Namespace) -> int:
    """Evaluate what is asked for; 1 where a checkpoint is damaged."""
    refuse(given)
    file = scores.opened(given.output, {"dtype": given.dtype, "limit": given.limit})
    found = [] if given.watch else wanted(given)
    harness = Harness(asking(given))
    merging = models.Merging(dtype=given.dtype, tokenizer_model=given.tokenizer_model, verify=given.verify)
    work = series.Series(harness=harness, merging=merging, file=file, again=given.again, picture=given.png)
    if given.load is not None:
        work.one(found[0])
    elif given.watch:
        work.watch(given.checkpoints)
    else:
        work.all(found)
    print(*tables.lines(work.done, harness.asking.columns), sep="\n")
    return 1 if work.damaged else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; 2 for a user's mistake, 1 where a checkpoint is damaged or merged wrongly, 130 where interrupted."""
    # whatever this process was started with, as for the trainer; temporary directories are removed then too
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return exit_code(lambda: evaluate(parse(sys.argv[1:] if argv is None else argv)))
    except Mismatch as mismatch:
        print(f"error: {mismatch}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted  what was found is kept in --output", file=sys.stderr)
        return INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
