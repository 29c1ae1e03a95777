"""Data whose documents nothing ends: --inter-document-masking would do nothing on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import indexed, receipt
from tinyllama_mcore.data.tokenizer import Vocabulary
from tinyllama_mcore.sampling.document_ends import refuse_unmarked

VOCABULARY = Vocabulary(vocab_size=600, eod=2, sha256="0" * 64)


def pair_of(prefix: Path, last: list[int]) -> str:
    """A pair of documents of four tokens, each with its last id."""
    with indexed.PairWriter(prefix, np.dtype(np.uint16)) as pair:
        for token in last:
            pair.add(np.array([7, 8, 9, token]), np.array([4]))
    return str(prefix)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ([2] * 400, None),
        ([5] * 400, "256 of the 256 documents checked do not end with the EOD id 2, the first of them 0"),
        (
            [2] * 3 + [5] + [2] * 3,
            "1 of the 7 documents checked do not end with the EOD id 2, the first of them 3",
        ),
    ],
    ids=["all marked", "none", "one not"],
)
def test_without_a_receipt_the_ids_say(last: list[int], message: str | None, tmp_path: Path) -> None:
    """Documents spread over the pair are looked at."""
    prefix = pair_of(tmp_path / "d", last)
    if message is None:
        refuse_unmarked([prefix], VOCABULARY)
    else:
        with pytest.raises(ConfigError, match=message):
            refuse_unmarked([prefix], VOCABULARY)


def test_a_document_of_several_sequences_ends_with_its_last(tmp_path: Path) -> None:
    """Megatron-LM's tool may write a sequence for each sentence; its own builder makes the pair."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "d.bin"), dtype=np.uint16)
    for _ in range(5):
        builder.add_document(torch.tensor([7, 8, 9, 5, 2]), [2, 3])
    builder.finalize(str(tmp_path / "d.idx"))
    refuse_unmarked([str(tmp_path / "d")], VOCABULARY)


def test_the_receipt_says_it(corpus: list[str], tmp_path: Path) -> None:
    """Whatever the last ids are."""
    refuse_unmarked(corpus[1::2], VOCABULARY)
    slip = receipt.read(corpus[1])
    assert slip is not None
    prefix = pair_of(tmp_path / "d", [2, 2])
    receipt.write(prefix, replace(slip, append_eod=False))
    with pytest.raises(ConfigError, match=r"d\.json says that it was made without --append-eod"):
        refuse_unmarked([corpus[1], prefix], VOCABULARY)
