"""The receipt of a dataset: `PREFIX.json` beside `PREFIX.bin/.idx`, what went in, what came out, with which tokenizer.

`preprocess` writes it, training reads it: data of another vocabulary is refused before anything is built. A pair
without a receipt (made by Megatron-LM's own tool) is taken as it is; ids are then only checked as they are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tinyllama_mcore.config import atomic
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import indexed, tokenizer_files
from tinyllama_mcore.data.counts import Counts
from tinyllama_mcore.data.tokenizer import Vocabulary


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One raw file that was read."""

    path: str
    bytes: int
    sha256: str
    """As `sha256sum` prints it."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a pair holds, as counted while it was written."""

    counts: Counts
    """Rows and tokens that were read, skipped and written."""
    append_eod: bool
    """Whether EOD ends each document, once."""
    vocab_size: int
    """Ids of the tokenizer."""
    eod: int
    """The tokenizer's EOD id."""
    tokenizer_model: str
    """Path of the tokenizer's file."""
    tokenizer_sha256: str
    """`Vocabulary.sha256`."""
    json_key: str
    """Field of the rows that held the text."""
    bin_bytes: int
    """Size of the `.bin`."""
    idx_bytes: int
    """Size of the `.idx`."""
    fingerprint: str
    """Checksum of the index: `PairInfo.fingerprint`."""
    inputs: tuple[InputFile, ...]
    """Raw files, in the order in which they were read."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Ids of the tokenizer that made the data."""
        return Vocabulary(vocab_size=self.vocab_size, eod=self.eod, sha256=self.tokenizer_sha256)


def copies(inputs: Iterable[InputFile]) -> Iterator[str]:
    """A line for each input that holds the bytes of an earlier one: its documents occur twice."""
    first: dict[tuple[int, str], str] = {}
    for file in inputs:
        original = first.setdefault((file.bytes, file.sha256), file.path)
        if original != file.path and file.bytes:
            yield f"{file.path} holds the same bytes as {original}: its documents occur twice"


def path_of(prefix: str | Path) -> Path:
    """The receipt of the pair at `prefix`."""
    return Path(f"{prefix}.json")


def write(prefix: str | Path, receipt: Receipt) -> None:
    """Put the receipt beside its pair, whole or not at all."""
    atomic.write_text(path_of(prefix), json.dumps(asdict(receipt), indent=2) + "\n")


def read(prefix: str | Path, flag: str = "--data-path") -> Receipt | None:
    """The receipt of a pair that `flag` names, None where there is none. ConfigError if it cannot be understood."""
    path = path_of(prefix)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        inputs = tuple(InputFile(**file) for file in fields["inputs"])
        return Receipt(**{**fields, "inputs": inputs, "counts": Counts(**fields["counts"])})
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{flag} {prefix}: {path} is not a receipt of tinyllama-preprocess: {error}") from None


def check(prefix: str | Path, vocabulary: Vocabulary, flag: str = "--data-path") -> indexed.PairInfo:
    """Check a pair and its receipt, if it has one, against the vocabulary of a run. ConfigError where they differ."""
    receipt = read(prefix, flag)
    if receipt is not None:
        _check_vocabulary(f"{flag} {prefix}: {path_of(prefix)} says that the data", receipt, vocabulary)
    info = indexed.check(prefix, vocabulary.vocab_size, flag)
    if receipt is not None:
        _check_sizes(info, receipt)
        _check_content(info, receipt)
    return info


def _check_vocabulary(where: str, receipt: Receipt, vocabulary: Vocabulary) -> None:
    if (largest := receipt.counts.largest_token_id) >= vocabulary.vocab_size:
        raise ConfigError(
            f"{where} holds token id {largest}, but the vocabulary has {vocabulary.vocab_size} ids "
            f"(0 to {vocabulary.vocab_size - 1}); give the tokenizer that made it, {receipt.tokenizer_model}"
        )
    if receipt.vocabulary != vocabulary:
        raise ConfigError(
            f"{where} was made with a tokenizer of {receipt.vocab_size} pieces, EOD {receipt.eod}, sha256 "
            f"{receipt.tokenizer_sha256[:12]}, but this run's has {vocabulary.vocab_size} pieces, EOD "
            f"{vocabulary.eod}, sha256 {vocabulary.sha256[:12]}; give the one that made it, {receipt.tokenizer_model}"
        )


def _check_sizes(info: indexed.PairInfo, receipt: Receipt) -> None:
    for path, promised in (
        (indexed.bin_path(info.prefix), receipt.bin_bytes),
        (indexed.idx_path(info.prefix), receipt.idx_bytes),
    ):
        actual = path.stat().st_size
        if actual != promised:
            raise ConfigError(
                f"{info.named}: {path} has {actual} bytes where {path_of(info.prefix)} says {promised}; the receipt is "
                f"of other data: preprocess again with tinyllama-preprocess"
            )


def _check_content(info: indexed.PairInfo, receipt: Receipt) -> None:
    """The index is the one that was written, and no text is drowned in separators."""
    if info.fingerprint != receipt.fingerprint:
        raise ConfigError(
            f"{info.named}: {indexed.idx_path(info.prefix)} is not the index that its receipt {path_of(info.prefix)} "
            f"describes (its checksum is {info.fingerprint[:12]}, not {receipt.fingerprint[:12]}); preprocess again "
            f"with tinyllama-preprocess"
        )
    seen = receipt.counts
    allowed = seen.documents if receipt.append_eod else 0
    if seen.separators > allowed or seen.separator_pairs:
        raise ConfigError(
            f"{info.named}: there are too many separators: {seen.separators:,} BOS and EOD tokens "
            f"({100 * seen.separators / seen.tokens:.3g}% of {seen.tokens:,}) for {seen.documents:,} documents, "
            f"{seen.separator_pairs:,} of them right after another one; there must be at most one EOD per document "
            f"(--append-eod)"
        )


def vocabulary_of(
    prefixes: Iterable[str],
    tokenizer_model: str | None,
    tokenizer_type: str | None = None,
    eod_token: str | None = None,
) -> Vocabulary:
    """The vocabulary of a run: of the tokenizer that is given, else of the one that the receipts agree on.

    What ends a document is `eod_token`, else what a receipt of the same tokenizer says, else what the tokenizer does.
    ConfigError where nothing says, or the receipts differ.
    """
    receipts = {prefix: read(prefix) for prefix in prefixes}
    found = {prefix: receipt.vocabulary for prefix, receipt in receipts.items() if receipt is not None}
    if tokenizer_model is not None:
        ends = {each.sha256: each.eod for each in found.values()}
        return tokenizer_files.load(tokenizer_model, tokenizer_type, eod_token or ends).vocabulary
    if not found:
        raise ConfigError(
            f"--tokenizer-model is needed: no receipt beside {', '.join(receipts)} says which vocabulary the data has"
        )
    first, *others = found.items()
    for prefix, vocabulary in others:
        if vocabulary != first[1]:
            raise ConfigError(
                f"--data-path: {first[0]} ({first[1].vocab_size} pieces, sha256 {first[1].sha256[:12]}) and {prefix} "
                f"({vocabulary.vocab_size} pieces, sha256 {vocabulary.sha256[:12]}) were made with different tokenizers"
            )
    return first[1]
