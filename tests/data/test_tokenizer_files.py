"""Which tokenizer a path names: by the file, by its kind, or by what lies in a directory."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests import small_tokenizers
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import DataConfig
from tinyllama_mcore.data import receipt, tokenizer_files
from tinyllama_mcore.reporting import inspection


@pytest.fixture
def both(corpus_tokenizer: Path, tmp_path: Path) -> Path:
    """A directory with a tokenizer of each kind."""
    small_tokenizers.make("qwen", tmp_path / "both", 300)
    shutil.copyfile(corpus_tokenizer, tmp_path / "both" / "tokenizer.model")
    return tmp_path / "both"


def test_the_kind_is_the_files(both: Path) -> None:
    """By the ending, else by the first byte; and a directory's is the one that it holds."""
    sentencepiece = tokenizer_files.load(both / "tokenizer.model")
    hugging_face = tokenizer_files.load(both / "tokenizer.json")
    assert (sentencepiece.library, hugging_face.library) == ("sentencepiece", "tokenizers")
    shutil.copyfile(both / "tokenizer.json", both / "without-ending")
    shutil.copyfile(both / "tokenizer.model", both / "other")
    assert tokenizer_files.load(both / "without-ending", eod="<|im_end|>").library == "tokenizers"
    assert tokenizer_files.load(both / "other").library == "sentencepiece"
    for kind, file in (("GPTSentencePieceTokenizer", sentencepiece), ("HuggingFaceTokenizer", hugging_face)):
        assert tokenizer_files.load(both, kind).vocabulary == file.vocabulary
    (both / "tokenizer.model").unlink()
    assert tokenizer_files.load(both).vocabulary == hugging_face.vocabulary


def test_a_directory_with_two_or_none_is_refused(both: Path, tmp_path: Path) -> None:
    """And a file of another kind than the one that is named."""
    with pytest.raises(
        ConfigError, match=r"holds tokenizer.model and tokenizer.json: name one of the two files, or the"
    ):
        tokenizer_files.load(both)
    with pytest.raises(ConfigError, match=r"holds no tokenizer.model and no tokenizer.json"):
        tokenizer_files.load(tmp_path)
    with pytest.raises(ConfigError, match=r"is JSON: give --tokenizer-type HuggingFaceTokenizer"):
        tokenizer_files.load(both / "tokenizer.json", "SentencePieceTokenizer")
    with pytest.raises(ConfigError, match=r"is not JSON: give --tokenizer-type SentencePieceTokenizer"):
        tokenizer_files.load(both / "tokenizer.model", "HuggingFaceTokenizer")
    with pytest.raises(ConfigError, match=r"--eod-token <end>: is no control piece of .*; those are <s>, </s>"):
        tokenizer_files.load(both / "tokenizer.model", eod="<end>")


def test_a_receipt_says_what_ends(both: Path, corpus: list[str], tmp_path: Path) -> None:
    """Data that were made with --eod-token are read without it, by training and by inspection."""
    tokenizer = tokenizer_files.load(both / "tokenizer.json", eod="<|im_end|>")
    slip = receipt.read(corpus[1])
    assert slip is not None and tokenizer.eod != tokenizer_files.load(both / "tokenizer.json").eod
    known = tokenizer.vocabulary
    slip = dataclasses.replace(
        slip, vocab_size=known.vocab_size, eod=known.eod, tokenizer_sha256=known.sha256, tokenizer_model=tokenizer.path
    )
    receipt.write(tmp_path / "data", slip)
    prefix = str(tmp_path / "data")
    assert receipt.vocabulary_of([prefix], tokenizer.path) == known
    for data in (DataConfig(blend=()), DataConfig(blend=(), tokenizer_model=tokenizer.path)):
        assert inspection.tokenizer_of(prefix, data).vocabulary == known
    own = receipt.vocabulary_of([prefix], tokenizer.path, eod_token="<|endoftext|>")
    assert own.eod != known.eod
