"""Token files of other programs to Megatron's indexed dataset: the command line of `preprocessing.import_tokens`.

    tinyllama-import-tokens --input 'data/slim_star/train_slimpajama_*.bin' --output-prefix data/slimpajama \
        --tokenizer-model tokenizer.model

Writes PREFIX.bin, .idx and .json. See docs/howto/migrate.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tinyllama_mcore.config import tokenizer_types
from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.preprocessing.import_tokens import Imported, ImportJob, run


def parse(argv: Sequence[str]) -> ImportJob:
    """The job that the flags describe."""
    parser = argparse.ArgumentParser(
        description="Write datatrove's .ds files, or TinyLlama's packed .bin chunks, as a .bin/.idx dataset.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--input", nargs="+", action="extend", required=True, metavar="PATH", help="files, directories or globs"
    )
    parser.add_argument("--output-prefix", required=True, metavar="P", help="writes P.bin, P.idx and P.json")
    parser.add_argument(
        "--tokenizer-model",
        required=True,
        metavar="PATH",
        help="the tokenizer that made the tokens: SentencePiece model, tokenizer.json, or a directory with one of them",
    )
    parser.add_argument(
        "--tokenizer-type",
        type=tokenizer_types.known,
        metavar="KIND",
        help=f"kind of --tokenizer-model: {' or '.join(tokenizer_types.TYPES)} (default: by the file)",
    )
    parser.add_argument(
        "--eod-token",
        metavar="TOKEN",
        help="special token that is EOD (default: the one that the tokenizer names)",
    )
    parser.add_argument(
        "--append-eod",
        action="store_true",
        help="end documents with EOD that end without it (default: refuse files that hold such documents)",
    )
    parser.add_argument("--overwrite", action="store_true", help="overwrite a dataset that is there (default: refuse)")
    given = vars(parser.parse_args(argv))
    return ImportJob(input=tuple(given.pop("input")), **given)


def summary(made: Imported) -> str:
    """What was done, in lines."""
    counts, found = made.receipt.counts, made.found
    changed = (
        (found.dropped, "BOS and EOD tokens left out that end no document"),
        (found.added, "EOD tokens put where a document ended without one"),
        (found.cut, "documents cut off where their last chunk ends; EOD is put there"),
    )
    return "\n".join(
        (
            f"{counts.documents:,} documents, {counts.tokens:,} tokens of {made.program} in {made.seconds:.1f} s "
            f"({counts.tokens / 1e6 / made.seconds:.2f} M tokens/s)",
            *(f"{count:,} {what}" for count, what in changed if count),
            *(f"its metadata name the tokenizer {name}: is it --tokenizer-model?" for name in made.tokenizers),
            f"wrote {made.pair.prefix}.bin, .idx and .json: --data-path {made.pair.prefix}",
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; 2 for a user's mistake."""
    job = parse(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: print(summary(run(job))))
