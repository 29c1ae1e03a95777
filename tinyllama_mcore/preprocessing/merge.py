"""Merges several pairs into one, in order, without reading their tokens into memory.

Neighbours: `indexed` copies, `counts` add up. `commands.merge_datasets` is the command line of this file.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import indexed, receipt
from tinyllama_mcore.data.receipt import Receipt
from tinyllama_mcore.preprocessing import exclusion, taken

MADE_ALIKE = ("tokenizer_sha256", "vocab_size", "eod", "append_eod", "json_key")
"""Fields of a receipt in which all pairs have to agree."""


def merge(
    prefixes: Sequence[str],
    output_prefix: str,
    *,
    allow_unmatched_exclude_set: bool = False,
    overwrite: bool = False,
    tell: Callable[[str], None] = print,
) -> tuple[indexed.PairInfo, Receipt | None]:
    """Write the documents of all pairs, in the order given, to `output_prefix`; with a receipt if all of them have one.

    Args:
        prefixes: the pairs.
        output_prefix: where to.
        allow_unmatched_exclude_set: accept that a set of --exclude-set has no rows in all pairs together.
        overwrite: overwrite a pair that is there.
        tell: called with a note for each raw file that is a copy of another.

    Raises:
        ConfigError: a pair is not whole, is given twice under any name, or was made in another way than the first; two
            were made from one file; or there is a pair at `output_prefix` and `overwrite` is false.
    """
    pairs = [indexed.read(prefix, "--input") for prefix in prefixes]
    _refuse_twice(prefixes, output_prefix)
    receipts = [receipt.read(prefix) for prefix in prefixes]
    for pair in pairs:
        if pair.dtype != pairs[0].dtype:
            raise ConfigError(
                f"--input {pair.prefix}: tokens are stored as {pair.dtype}, those of {pairs[0].prefix} as "
                f"{pairs[0].dtype}; they were made with different tokenizers"
            )
        if pair.documents != pair.sequences:
            raise ConfigError(
                f"--input {pair.prefix}: has {pair.sequences} sequences in {pair.documents} documents; only datasets "
                f"with one sequence per document can be merged"
            )
    taken.refuse_taken(output_prefix, overwrite=overwrite)
    merged = _merged(prefixes, receipts)
    if merged is not None:
        if not allow_unmatched_exclude_set:
            exclusion.refuse_unmatched(merged.counts)
        for note in receipt.copies(merged.inputs):
            tell(note)
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


def _refuse_twice(prefixes: Sequence[str], output_prefix: str) -> None:
    """ConfigError where two names are of one pair: a link, another spelling of its path."""
    seen: dict[object, str] = {os.path.realpath(indexed.bin_path(output_prefix)): output_prefix}
    for prefix in prefixes:
        file = indexed.bin_path(prefix)
        found = file.stat()
        identities = os.path.realpath(file), (found.st_dev, found.st_ino)
        for other in (seen[identity] for identity in identities if identity in seen):
            raise ConfigError(
                f"--input {prefix}: is given twice, or is also the output (as {other}); give each dataset once"
            )
        seen.update(dict.fromkeys(identities, prefix))


def _refuse_shared(prefixes: Sequence[str], receipts: Sequence[Receipt]) -> None:
    """ConfigError where two pairs were made from one file: jobs that were not parts of one whole."""
    made: dict[receipt.InputFile, str] = {}
    for prefix, slip in zip(prefixes, receipts, strict=True):
        for file in slip.inputs:
            if made.setdefault(file, prefix) != prefix:
                raise ConfigError(
                    f"--input {prefix}: was made from {file.path}, and so was {made[file]}; its documents would occur "
                    f"twice: merge only the parts of one job with --partitions"
                )


def _merged(prefixes: Sequence[str], receipts: Sequence[Receipt | None]) -> Receipt | None:
    """What all receipts say together, but for what is of the new files; None where a pair has none."""
    found = [slip for slip in receipts if slip is not None]
    if len(found) < len(receipts):
        return None
    first = found[0]
    _refuse_shared(prefixes, found)
    for prefix, slip in zip(prefixes, found, strict=True):
        for name in MADE_ALIKE:
            if getattr(slip, name) != getattr(first, name):
                raise ConfigError(
                    f"--input {prefix}: its {name} is {getattr(slip, name)}, that of {prefixes[0]} is "
                    f"{getattr(first, name)}; only datasets made with the same {name} can be merged"
                )
    return dataclasses.replace(
        first,
        counts=sum((slip.counts for slip in found[1:]), first.counts),
        inputs=tuple(itertools.chain.from_iterable(slip.inputs for slip in found)),
    )
