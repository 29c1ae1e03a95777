"""Raw text files to Megatron's indexed dataset: the command line of `tinyllama_mcore.preprocessing.preprocess`.

    tinyllama-preprocess --preset slimpajama --input SlimPajama-627B --output-prefix data/slimpajama \
        --tokenizer-model tokenizer.model --append-eod --workers 8

Writes PREFIX_text_document.bin, .idx and .json. Flags are Megatron-LM's; see docs/howto/data.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from tinyllama_mcore.config import tokenizer_types
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing import presets
from tinyllama_mcore.preprocessing.documents import DEFAULT_KEY
from tinyllama_mcore.preprocessing.piece import TXT_DOCUMENTS
from tinyllama_mcore.preprocessing.preprocess import PreprocessJob, Written, run
from tinyllama_mcore.preprocessing.presets import PRESETS, Preset
from tinyllama_mcore.preprocessing.workers import WorkerDied

PLAIN = Preset(splits={}, json_keys=(DEFAULT_KEY,))
"""What holds without --preset."""


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1; got {text!r}")
    return number


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 <= rate < 1:
        raise argparse.ArgumentTypeError(f"must be a share of the rows, at least 0 and below 1; got {text!r}")
    return rate


FLAGS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--input",
        {
            "nargs": "+",
            "action": "extend",
            "required": True,
            "metavar": "PATH",
            "help": "files, directories or globs, or their URLs",
        },
    ),
    (
        "--output-prefix",
        {"required": True, "metavar": "P", "help": "writes P_KEY_document.bin, .idx and .json"},
    ),
    (
        "--preset",
        {
            "choices": tuple(PRESETS),
            "help": "--input is the directory of this dataset: take its files, its text field and its excluded sets "
            "(default: none)",
        },
    ),
    (
        "--dataset-split",
        {
            "metavar": "NAME",
            "help": "split of the dataset: of --preset's, or of a DatasetDict, which Hugging Face's datasets writes by "
            "save_to_disk and of which it has to be given (default: of --preset's, train)",
        },
    ),
    (
        "--tokenizer-model",
        {
            "required": True,
            "metavar": "PATH",
            "help": "SentencePiece model, tokenizer.json (byte-level BPE), or a directory that holds one of them",
        },
    ),
    (
        "--tokenizer-type",
        {
            "type": tokenizer_types.known,
            "metavar": "KIND",
            "help": f"kind of --tokenizer-model: {' or '.join(tokenizer_types.TYPES)} (default: by the file)",
        },
    ),
    (
        "--eod-token",
        {"metavar": "TOKEN", "help": "special token that is EOD (default: the one that the tokenizer names)"},
    ),
    (
        "--vocab-size",
        {
            "type": _positive,
            "metavar": "N",
            "help": "refuse a tokenizer with more ids than a model of N rows has (default: do not)",
        },
    ),
    (
        "--make-vocab-size-divisible-by",
        {
            "type": _positive,
            "default": 1,
            "metavar": "N",
            "help": "print as --vocab-size a multiple of N, as the trainer's flag of this name makes it (default: 1)",
        },
    ),
    ("--append-eod", {"action": "store_true", "help": "end each document with EOD (default: do not)"}),
    (
        "--workers",
        {"type": _positive, "default": 1, "metavar": "N", "help": "processes that tokenize (default: 1)"},
    ),
    (
        "--json-keys",
        {
            "nargs": "+",
            "action": "extend",
            "metavar": "KEY",
            "help": "fields that hold text; each gives a dataset of its own (default: the preset's, else text; for "
            "Parquet and Arrow files without a column text: content)",
        },
    ),
    (
        "--txt-documents",
        {
            "choices": TXT_DOCUMENTS,
            "default": TXT_DOCUMENTS[0],
            "help": "what a document of a .txt is: the whole file, or each block of lines between blank lines "
            "(default: file)",
        },
    ),
    (
        "--exclude-set",
        {
            "nargs": "+",
            "action": "extend",
            "metavar": "NAME",
            "help": "values of meta.redpajama_set_name whose rows are dropped (default: the preset's, else none)",
        },
    ),
    (
        "--allow-unmatched-exclude-set",
        {
            "action": "store_true",
            "help": "accept that a set of --exclude-set has no rows (default: refuse)",
        },
    ),
    (
        "--bad-row-rate",
        {
            "type": _rate,
            "default": 0.0,
            "metavar": "R",
            "help": "skip rows that hold no document, up to this share of all rows; they are written to "
            "P_KEY_document.quarantine.jsonl (default: 0, the first one ends the job)",
        },
    ),
    (
        "--partitions",
        {"type": _positive, "default": 1, "metavar": "K", "help": "jobs that the input is divided over (default: 1)"},
    ),
    (
        "--partition",
        {
            "type": int,
            "default": 0,
            "metavar": "I",
            "help": "number of this job, from 0; tinyllama-merge-datasets joins their outputs (default: 0)",
        },
    ),
    (
        "--resume",
        {
            "action": "store_true",
            "help": "reuse what an earlier, killed job finished; if this one fails, keep what it finished (default: do "
            "not)",
        },
    ),
    ("--overwrite", {"action": "store_true", "help": "overwrite a dataset that is there (default: refuse)"}),
)


def parse(argv: Sequence[str]) -> PreprocessJob:
    """The job that the flags describe; `-` and `_` are the same in their names."""
    parser = argparse.ArgumentParser(
        description="Tokenize .jsonl, .json, .txt, .tar, .parquet and .arrow files into a .bin/.idx pair.",
        allow_abbrev=False,
    )
    for name, options in FLAGS:
        parser.add_argument(name, **options)
    words = [re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), word) for word in argv]
    given = vars(parser.parse_args(words))
    partition, partitions = given["partition"], given["partitions"]
    if not 0 <= partition < partitions:
        parser.error(f"--partition {partition} must be 0 to {partitions - 1} with --partitions {partitions}")
    preset, split, paths = given.pop("preset"), given.pop("dataset_split"), given.pop("input")
    filled = PRESETS.get(preset, PLAIN)
    keys, excluded = given.pop("json_keys"), given.pop("exclude_set")
    return PreprocessJob(
        inputs=tuple(paths) if preset is None else presets.inputs(preset, paths, split),
        dataset_split=split if preset is None else None,  # a preset's patterns have it
        json_keys=filled.json_keys if keys is None else tuple(keys),
        exclude_sets=frozenset(filled.exclude_sets if excluded is None else excluded),
        **given,
    )


def summary(written: Written) -> str:
    """What was done, in lines."""
    counts = written.receipt.counts
    lines = [
        f"{counts.documents:,} documents, {counts.tokens:,} tokens, {counts.text_bytes / 1e6:,.1f} MB of text in "
        f"{written.seconds:.1f} s ({counts.text_bytes / 1e6 / written.seconds:.2f} MB/s, "
        f"{counts.tokens / 1e6 / written.seconds:.2f} M tokens/s) with {' and '.join(counts.libraries)}",
        *(f"dropped {count:,} documents of {name}" for name, count in counts.dropped.items()),
        *(f"kept {count:,} rows that name no set" for name, count in counts.sets.items() if not name),
        *(f"skipped {count:,} bad rows: {kind}" for kind, count in counts.quarantined.items()),
    ]
    lines.append(
        f"{written.receipt.vocab_size:,} ids of {written.receipt.tokenizer_model}: --vocab-size {written.rows} or more"
    )
    if counts.empty_documents:
        lines.append(f"skipped {counts.empty_documents:,} empty documents: their text gives no token")
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
