"""A checkpoint of any layout to a Hugging Face directory: the command line of `tinyllama_mcore.hf.export`.

    tinyllama-merge --load runs/tinyllama --output hf/tinyllama --dtype bf16

Needs neither a GPU nor a launcher. See docs/howto/hugging-face.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.config.flags import add, named
from tinyllama_mcore.hf.config import DTYPES
from tinyllama_mcore.hf.export import Exported, ExportJob, export
from tinyllama_mcore.hf.parity import Mismatch


def parse(argv: Sequence[str]) -> ExportJob:
    """The job that the flags describe."""
    parser = argparse.ArgumentParser(
        description="Write a checkpoint as a Hugging Face model: config, safetensors, tokenizer.", allow_abbrev=False
    )
    add(parser, replace(named("--load"), words="directory that a run saved to", read=Path), required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="new directory for the model")
    add(parser, replace(named("--iteration"), words="checkpoint to export", otherwise="the newest finished one"))
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="dtype of the weights (default: bf16)")
    add(parser, replace(named("--tokenizer-model"), otherwise="the one that the run was given", read=Path))
    add(parser, replace(named("--tokenizer-type"), otherwise="the run's, else by the file"))
    add(parser, replace(named("--eod-token"), otherwise="the run's, else the tokenizer's own"))
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not compare logits with the training model (default: compare, in fp32)",
    )
    return ExportJob(**vars(parser.parse_args(argv)))


def summary(exported: Exported) -> str:
    """What was done, in lines."""
    parity = exported.parity
    checked = (
        "logits were not compared (--no-verify)"
        if parity is None
        else f"logits match the training model's in fp32: {parity.told()}"
    )
    replay = exported.replay
    if replay is not None:
        checked += (
            f"\nlogits match those that the training run saved in the checkpoint: they deviate by "
            f"{replay.deviation:.2e}, and {replay.precision} rounding explains up to {replay.bound:.2e}"
        )
    elif parity is not None:
        checked += "\nthe checkpoint has no logits of a training run to compare with (imported weights have none)"
    return (
        f"iteration {exported.iteration:,}: {exported.parameters:,} parameters written, read back and compared\n"
        f"{checked}\n"
        f"wrote {exported.directory}: {', '.join(exported.files)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; 2 for a user's mistake, 1 where the result is not what the checkpoint holds."""
    job = parse(sys.argv[1:] if argv is None else argv)
    try:
        return exit_code(lambda: print(summary(export(job))))
    except Mismatch as mismatch:
        print(f"error: {mismatch}; {job.output} was not written", file=sys.stderr)
        return 1
