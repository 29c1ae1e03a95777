"""The tokenizer gives SentencePiece's own ids, and refuses what is not a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data.tokenizer import SentencePieceTokenizer

ODD_TEXTS = [
    "",
    " ",
    "\n",
    "\t\tx",
    "a  b   c    d",
    "\0",
    "\u2581",
    "<s></s><unk>",
    "12345",
    "日本語 🙂",
    "\u200b\ufeff",
    "é" * 300,
]


def test_ids_are_sentencepieces_own(
    tokenizer_model: Path, reference: sentencepiece.SentencePieceProcessor, texts: list[str]
) -> None:
    """Batch encoding equals one document at a time; no BOS, no EOS; decoding gives the text back."""
    tokenizer = SentencePieceTokenizer(tokenizer_model)
    for text, ids in zip(texts + ODD_TEXTS, tokenizer.encode(texts + ODD_TEXTS), strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == reference.encode(text)
        assert tokenizer.eod not in ids and tokenizer.bos not in ids
        assert tokenizer.decode(ids) == reference.decode(reference.encode(text))


def test_vocabulary(tokenizer_model: Path) -> None:
    """Size and special ids are Llama's arrangement; the checksum is of the file."""
    tokenizer = SentencePieceTokenizer(tokenizer_model)
    assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eod) == (600, 1, 2)
    assert tokenizer.vocabulary == SentencePieceTokenizer(str(tokenizer_model)).vocabulary


def test_llama2(checkout: Path) -> None:
    """Llama-2's own model, where it is at hand: the edge cases that conversions get wrong."""
    model = checkout.parent / "shared/data/llama2_tokenizer.model"
    if not model.exists():
        pytest.skip("Llama-2's tokenizer.model is not at hand")
    tokenizer = SentencePieceTokenizer(model)
    assert tokenizer.vocabulary.sha256.startswith("9e556afd")
    ids = tokenizer.encode(["", " ", "\n", "\0", "<s>"])
    assert [row.tolist() for row in ids] == [[], [259], [29871, 13], [29871, 3], [529, 29879, 29958]]


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    """Missing, and broken."""
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"--tokenizer-model .*absent.model: cannot be read \(No such file"):
        SentencePieceTokenizer(tmp_path / "absent.model")
    with pytest.raises(ConfigError, match=r"broken.model: not a SentencePiece model \(11 bytes\)"):
        SentencePieceTokenizer(broken)
