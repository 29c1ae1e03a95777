"""Several .bin/.idx pairs to one: the command line of `tinyllama_mcore.preprocessing.merge`.

    tinyllama-merge-datasets --input data/slimpajama_text_document_*-of-016 \
        --output-prefix data/slimpajama_text_document

Writes PREFIX.bin, .idx and, where every pair has a receipt, .json. See docs/howto/data.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing import exclusion
from tinyllama_mcore.preprocessing.merge import merge

SUFFIXES = (".bin", ".idx", ".json")


def prefixes(words: Sequence[str]) -> list[str]:
    """The pairs that the words name, in order, each once: a shell's pattern names each of their files."""
    found = (next((word.removesuffix(s) for s in SUFFIXES if word.endswith(s)), word) for word in words)
    return list(dict.fromkeys(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Merge; 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description="Merge .bin/.idx datasets in the order given.", allow_abbrev=False)
    parser.add_argument(
        "--input",
        nargs="+",
        action="extend",
        required=True,
        metavar="PREFIX",
        help="datasets, with or without .bin, .idx or .json",
    )
    parser.add_argument("--output-prefix", required=True, metavar="P", help="writes P.bin, P.idx and P.json")
    parser.add_argument(
        exclusion.FLAG,
        action="store_true",
        help="accept that a set of --exclude-set has no rows in all datasets together (default: refuse)",
    )
    parser.add_argument("--overwrite", action="store_true", help="overwrite a dataset that is there (default: refuse)")
    given = parser.parse_args(argv)
    allow = given.allow_unmatched_exclude_set
    try:
        pair, slip = merge(
            prefixes(given.input), given.output_prefix, allow_unmatched_exclude_set=allow, overwrite=given.overwrite
        )
    except ConfigError as error:
        print(f"merge_datasets: {error}", file=sys.stderr)
        return 2
    print(f"wrote {pair.prefix}: {pair.sequences:,} documents, {pair.tokens:,} tokens")
    if slip is None:
        print("wrote no receipt, because not every input has one")
    return 0
