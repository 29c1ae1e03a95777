"""A Hugging Face Llama to a checkpoint at iteration 0: the command line of `tinyllama_mcore.hf.importing`.

    tinyllama-import --input hf/tinyllama --output runs/continued

A run takes it with `--load runs/continued`, in any layout; Adam's moments start at zero. Its logits are compared with
those of the model first. See docs/howto/hugging-face.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.hf import deepspeed_native
from tinyllama_mcore.hf.importing import Imported, import_hf
from tinyllama_mcore.hf.parity import Mismatch


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags: `input`, `deepspeed`, `tag`, `output` and `verify`."""
    parser = argparse.ArgumentParser(
        description="Write a Hugging Face Llama, Qwen-2 or Qwen-3 as a checkpoint at iteration 0.", allow_abbrev=False
    )
    parser.add_argument(
        "--input", type=Path, required=True, metavar="HF_DIR", help="directory with config.json and safetensors"
    )
    parser.add_argument(
        "--deepspeed",
        type=Path,
        metavar="DIR",
        help="take weights and Adam's moments from this directory, which DeepSpeed's engine.save_checkpoint wrote "
        "(default: none: the safetensors of --input)",
    )
    parser.add_argument("--tag", metavar="T", help="subdirectory of --deepspeed (default: the one that `latest` names)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new directory for the checkpoint")
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not compare the training model's logits with those of the source (default: compare, in fp32)",
    )
    return parser.parse_args(argv)


def convert(given: argparse.Namespace) -> Imported:
    """Do what the flags ask for. ConfigError where they contradict each other."""
    if given.deepspeed is None and given.tag is not None:
        raise ConfigError(f"--tag {given.tag} names a subdirectory of --deepspeed: give --deepspeed too")
    saved = None if given.deepspeed is None else deepspeed_native.read(given.deepspeed, given.tag)
    return import_hf(given.input, given.output, saved, verify=given.verify)


def summary(imported: Imported) -> str:
    """What was done, in lines."""
    parity = imported.parity
    checked = (
        "logits were not compared (--no-verify)"
        if parity is None
        else f"the training model's logits match the source's in fp32: {parity.told()}"
    )
    moments = f"are those after {imported.updates:,} updates" if imported.updates else "start at zero"
    tokenizer = (
        "no tokenizer that is read here lies beside the model: data of any are taken"
        if imported.tokenizer is None
        else f"data have to be made with {imported.tokenizer}"
    )
    return (
        f"{imported.parameters:,} parameters written in fp32, read back and compared; Adam's moments {moments}\n"
        f"{checked}\n"
        f"{tokenizer}\n"
        f"wrote {imported.checkpoint}: train from it with --load {imported.checkpoint.parent}\n"
        f"wrote {imported.recipe}: the model's sizes, with optimizer, batch and precision of {imported.numbers_of}. "
        "--load takes these numbers too; to change them, edit the file and give it as --recipe"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the import; 2 for a user's mistake, 1 where the checkpoint is not the model that was given."""
    given = parse(sys.argv[1:] if argv is None else argv)
    try:
        return exit_code(lambda: print(summary(convert(given))))
    except Mismatch as mismatch:
        print(f"error: {mismatch}; {given.output} was not written", file=sys.stderr)
        return 1
