"""Raw text files to Megatron's indexed dataset: the command line of `tinyllama_mcore.data.preprocess`.

    python tools/preprocess_data.py --input slimpajama/train --output-prefix data/slimpajama \
        --tokenizer-model tokenizer.model --append-eod --workers 8 --exclude-set RedPajamaGithub

Writes PREFIX_text_document.bin, .idx and .json. Flags are Megatron-LM's; see docs/data.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from tinyllama_mcore.config.schema import ConfigError
from tinyllama_mcore.data.preprocess import PreprocessJob, Written, run
from tinyllama_mcore.data.workers import WorkerDied


def parse(argv: Sequence[str]) -> PreprocessJob:
    """The job that the flags describe; `-` and `_` are the same in their names."""
    parser = argparse.ArgumentParser(
        description="Tokenize .jsonl, .jsonl.gz, .jsonl.zst and .parquet files into a .bin/.idx pair and its receipt.",
        allow_abbrev=False,
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files, folders or globs")
    parser.add_argument(
        "--output-prefix", required=True, metavar="P", help="where to: P_KEY_document.bin, .idx and .json"
    )
    parser.add_argument("--tokenizer-model", required=True, metavar="FILE", help="SentencePiece model")
    parser.add_argument("--append-eod", action="store_true", help="end each document with EOD (default: do not)")
    parser.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="processes that tokenize (default: 1)"
    )
    parser.add_argument(
        "--json-keys",
        nargs="+",
        default=["text"],
        metavar="KEY",
        help="fields that hold text, one pair each (default: text; in Parquet without one: content)",
    )
    parser.add_argument(
        "--exclude-set",
        nargs="+",
        default=[],
        metavar="NAME",
        help="values of meta.redpajama_set_name whose rows are dropped (default: none)",
    )
    given = parser.parse_args([re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), word) for word in argv])
    return PreprocessJob(
        inputs=tuple(given.input),
        output_prefix=given.output_prefix,
        tokenizer_model=given.tokenizer_model,
        append_eod=given.append_eod,
        workers=given.workers,
        json_keys=tuple(given.json_keys),
        exclude_sets=frozenset(given.exclude_set),
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} processes cannot work: at least 1")
    return number


def summary(written: Written) -> str:
    """What was done, in lines."""
    receipt = written.receipt
    lines = [
        f"{receipt.documents:,} documents, {receipt.tokens:,} tokens, "
        f"{receipt.text_bytes / 1e6:,.1f} MB of text in {written.seconds:.1f} s "
        f"({receipt.text_bytes / 1e6 / written.seconds:.2f} MB/s)",
        *(f"dropped {count:,} documents of {name}" for name, count in receipt.dropped.items()),
    ]
    if receipt.empty_documents:
        lines.append(f"left out {receipt.empty_documents:,} empty documents")
    return "\n".join([*lines, f"wrote {written.prefix}.bin, .idx and .json: --data-path {written.prefix}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; 2 for a user's mistake, 1 where a worker died."""
    try:
        for written in run(parse(sys.argv[1:] if argv is None else argv)):
            print(summary(written))
    except ConfigError as error:
        print(f"preprocess_data: {error}", file=sys.stderr)
        return 2
    except WorkerDied as error:
        print(f"preprocess_data: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
