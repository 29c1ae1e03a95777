"""Several pairs to one, in order, without reading their tokens into memory: what `--partitions` jobs wrote, or others.

Neighbours: `indexed` copies, `counts` add up. `tools/merge_datasets.py` is the command line of this file.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from tinyllama_mcore.config.schema import ConfigError
from tinyllama_mcore.data import indexed, receipt, taken
from tinyllama_mcore.data.receipt import Receipt

MADE_ALIKE = ("tokenizer_sha256", "vocab_size", "eod", "append_eod", "json_key")
"""Fields of a receipt that have to agree."""


def merge(
    prefixes: Sequence[str], output_prefix: str, *, overwrite: bool = False
) -> tuple[indexed.PairInfo, Receipt | None]:
    """Write the documents of all pairs, in the order given, to `output_prefix`; with a receipt if all of them have one.

    Raises:
        ConfigError: a pair that is not whole, is given twice, or was made in another way than the first; or a pair
            lies at `output_prefix` and `overwrite` does not say that it may be written over.
    """
    twice = [prefix for prefix in prefixes if [*prefixes, output_prefix].count(prefix) > 1]
    if twice:
        raise ConfigError(f"--input {twice[0]}: is given twice, or is the output too; each pair once")
    taken.refuse_taken(output_prefix, overwrite=overwrite)
    pairs = [indexed.read(prefix, "--input") for prefix in prefixes]
    receipts = [receipt.read(prefix) for prefix in prefixes]
    for pair in pairs:
        if pair.dtype != pairs[0].dtype:
            raise ConfigError(
                f"--input {pair.prefix}: tokens are stored as {pair.dtype}, those of {pairs[0].prefix} as "
                f"{pairs[0].dtype}; they were made with different tokenizers"
            )
        if pair.documents != pair.sequences:
            raise ConfigError(
                f"--input {pair.prefix}: has {pair.sequences} sequences in {pair.documents} documents; only pairs of "
                f"one sequence a document are merged"
            )
    merged = _merged(prefixes, receipts)
    with indexed.PairWriter(output_prefix, pairs[0].dtype) as writer:
        for pair in pairs:
            writer.append(pair)
        receipt.path_of(output_prefix).unlink(missing_ok=True)
    info = indexed.read(output_prefix)
    if merged is None:
        return info, None
    merged = dataclasses.replace(
        merged,
        bin_bytes=indexed.bin_path(output_prefix).stat().st_size,
        idx_bytes=indexed.idx_path(output_prefix).stat().st_size,
        fingerprint=info.fingerprint,
    )
    receipt.write(output_prefix, merged)
    return info, merged


def _merged(prefixes: Sequence[str], receipts: Sequence[Receipt | None]) -> Receipt | None:
    """What all receipts say together, but for what is of the new files; None where a pair has none."""
    found = [slip for slip in receipts if slip is not None]
    if len(found) < len(receipts):
        return None
    first = found[0]
    for prefix, slip in zip(prefixes, found, strict=True):
        for name in MADE_ALIKE:
            if getattr(slip, name) != getattr(first, name):
                raise ConfigError(
                    f"--input {prefix}: its {name} is {getattr(slip, name)}, that of {prefixes[0]} is "
                    f"{getattr(first, name)}; merge what was made alike"
                )
    return dataclasses.replace(
        first,
        counts=sum((slip.counts for slip in found[1:]), first.counts),
        inputs=tuple(itertools.chain.from_iterable(slip.inputs for slip in found)),
    )
