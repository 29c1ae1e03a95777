"""Data made with a tokenizer.json hold the `tokenizers` library's ids, whichever library gives them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tests import small_tokenizers
from tests.preprocessing.test_encoder import documents, fuzz
from tinyllama_mcore.commands import preprocess_data
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import indexed, receipt, tokenizer_files
from tinyllama_mcore.data.byte_level import HuggingFaceTokenizer
from tinyllama_mcore.preprocessing import encoder, text_splitter
from tinyllama_mcore.preprocessing.encoder import Encoder, FastEncoderDiffers
from tinyllama_mcore.preprocessing.preprocess import PreprocessJob, run
from tinyllama_mcore.reporting import inspection, validation

LETTER_OF_UNICODE_17 = "\U00016ea0"
"""A letter to tokenizers 0.23.3, and none to gigatoken 0.10.0."""
NOT_NFC = ("e\u0301 cafe\u0301s", "\u1100\u1161\u11a8", "\u0344", "a\u0323\u0307", "\u09c7\u09be")
TEXTS = [
    *fuzz(400),
    *small_tokenizers.texts()[:4],
    *NOT_NFC,
    *(
        f"a{LETTER_OF_UNICODE_17}'s !{LETTER_OF_UNICODE_17}b",
        "<think>a <think>",
        "<|endoftext|> <|im_start|>x",
        "</think",
    ),
]


@pytest.fixture(scope="module", params=small_tokenizers.KINDS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with GPT-2's, Llama-3's or Qwen's kind of tokenizer."""
    return small_tokenizers.make(request.param, tmp_path_factory.mktemp(request.param) / request.param)


@pytest.fixture
def tokenizer(directory: Path) -> HuggingFaceTokenizer:
    """It, opened."""
    return HuggingFaceTokenizer(directory / "tokenizer.json")


def expected(directory: Path, texts: list[str]) -> list[list[int]]:
    """The library's ids."""
    library = small_tokenizers.library(directory)
    return [library.encode(text, add_special_tokens=False).ids for text in texts]


def test_ids_are_the_librarys(directory: Path, tokenizer: HuggingFaceTokenizer) -> None:
    """For every document of a fuzz corpus, by gigatoken where it is installed, and without it."""
    texts = [text for text in TEXTS if text]
    for fast in (True, False):
        encoded = Encoder(tokenizer)
        encoded._fast = encoded._fast if fast else None
        assert documents(encoded, texts) == expected(directory, texts)


def test_cutting_changes_nothing(
    directory: Path, tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents in parts of some 25 characters, at every cut that the rule allows."""
    monkeypatch.setattr(text_splitter, "PART_CHARACTERS", 25)
    texts = [text for text in TEXTS if text]
    encoded = Encoder(tokenizer)
    assert encoded._cuts.allowed
    assert sum(len(list(encoded._cuts.parts(text))) for text in texts) > 2 * len(texts)
    assert documents(encoded, texts) == expected(directory, texts)


@pytest.mark.parametrize("flag", ["single_word", "lstrip", "rstrip"])
def test_added_tokens_that_look_around_are_the_librarys_affair(flag: str, tmp_path: Path) -> None:
    """No text is cut then, gigatoken is not asked, and ids are the library's."""
    directory = small_tokenizers.make("qwen", tmp_path / flag)
    added = small_tokenizers.change(directory)["added_tokens"]
    small_tokenizers.change(directory, added=[*added[:-1], added[-1] | {flag: True, "content": "think"}])
    encoded = Encoder(HuggingFaceTokenizer(directory / "tokenizer.json"))
    assert encoded.library == "tokenizers" and not encoded._cuts.allowed
    texts = ["think", "a think b", "thinking rethink  think  \n", "think think"]
    assert documents(encoded, texts) == expected(directory, texts)


@pytest.mark.parametrize("regex", [r"\p{L}{1,3}|\s+|.", r"\w+|\W+"])
def test_a_regex_that_is_not_known_is_the_librarys_affair(regex: str, tmp_path: Path) -> None:
    """No text is cut, gigatoken does not know it, and ids are the library's."""
    directory = small_tokenizers.make("llama3", tmp_path / "odd")
    content = small_tokenizers.change(directory)
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = regex
    (directory / "tokenizer.json").write_text(json.dumps(content))
    encoded = Encoder(HuggingFaceTokenizer(directory / "tokenizer.json"))
    assert encoded.library == "tokenizers" and not encoded._cuts.allowed
    texts = [text for text in TEXTS if text][::7]
    assert documents(encoded, texts) == expected(directory, texts)


def test_gigatoken_agrees_and_a_fault_is_noticed(tokenizer: HuggingFaceTokenizer) -> None:
    """At the start for what is wrong everywhere; while it runs for a lost byte, or wrong ids of a sampled document."""
    pytest.importorskip("gigatoken")
    assert Encoder(tokenizer).library == "gigatoken"
    fast = encoder.gigatoken_encode(tokenizer)
    assert fast is not None
    assert not encoder.agree(lambda text: fast(text.replace(b"\t", b" ")), tokenizer)
    texts = ["one two", "three"] * 5
    for wrong, right in ((b"r", b""), (b"on", b"no")):
        faulty = Encoder(tokenizer)
        faulty._fast = lambda text, wrong=wrong, right=right: fast(text.replace(wrong, right))
        with pytest.raises(FastEncoderDiffers):
            documents(faulty, texts)
        assert faulty.library == "tokenizers"


def test_every_character_is_tried_once(directory: Path, tokenizer: HuggingFaceTokenizer) -> None:
    """What the two libraries take for another kind of character goes to the one that decides, and is counted so."""
    pytest.importorskip("gigatoken")
    fast = encoder.gigatoken_encode(tokenizer)
    assert fast is not None
    hard = f"{LETTER_OF_UNICODE_17}'s"
    (exact,) = tokenizer.encode([hard])
    assert not np.array_equal(fast(hard.encode()), exact), "gigatoken has caught up: take another letter"
    encoded = Encoder(tokenizer)
    (batch,) = encoded.encode(["plain", hard, "plain again"])
    assert set(batch.libraries) == {"gigatoken", "tokenizers"} and batch.libraries["tokenizers"] == len(exact)
    assert all(not unicodedata.is_normalized("NFC", text) for text in NOT_NFC)
    if tokenizer.steps("normalizer"):  # "<think>" and a stroke do not become "<think" and U+226F
        assert [tokenizer.decode(batch.tokens) for batch in encoded.encode(["<think>\u0338"])] == ["<think>\u0338"]


def test_the_pair_and_its_receipt(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command: ids of every document, EOD, what the receipt counts; inspection reads it back."""
    texts = [text for text in TEXTS if text]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    argv = ["--input", str(tmp_path / "raw.jsonl"), "--output-prefix", str(tmp_path / "data"), "--append-eod"]
    argv += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(directory), "--workers", "2"]
    assert preprocess_data.main([*argv, "--make-vocab-size-divisible-by", "128"]) == 0
    tokenizer = tokenizer_files.load(directory)
    assert f"{tokenizer.vocab_size:,} ids of {directory}/tokenizer.json: --vocab-size 640 or" in capsys.readouterr().out
    prefix = str(tmp_path / "data_text_document")
    pair, slip = indexed.read(prefix), receipt.read(prefix)
    assert slip is not None and slip.vocabulary == tokenizer.vocabulary
    reader = indexed.TokenReader(pair)
    assert [reader.read(i).tolist() for i in range(pair.sequences)] == [
        [*ids, tokenizer.eod] for ids in expected(directory, texts)
    ]
    assert (slip.counts.eod, slip.counts.bos, slip.counts.separator_pairs) == (len(texts), 0, 0)
    assert validation.validate(prefix, tokenizer).faults == ()
    plain = texts.index("<think>a <think>")
    assert inspection.document(prefix, plain, tokenizer).text == texts[plain]
    assert plain in [match.document for match in inspection.search(prefix, "a <think>", tokenizer)]


def test_more_ids_than_16_bits_hold(tmp_path: Path) -> None:
    """From 65,500 ids on tokens are int32, by Megatron's rule; a model with fewer rows is refused."""
    directory = small_tokenizers.make("gpt2", tmp_path / "large", 300)
    content = small_tokenizers.change(directory)
    many = {f"\u0100{number}": 300 + number for number in range(65_200)}
    added = [token | {"id": 65_500 + i} for i, token in enumerate(content["added_tokens"])]
    small_tokenizers.change(directory, vocab=content["model"]["vocab"] | many, added=added)
    (tmp_path / "raw.jsonl").write_text('{"text": "one two"}\n{"text": "three"}\n')
    job = PreprocessJob(
        inputs=(str(tmp_path / "raw.jsonl"),),
        output_prefix=str(tmp_path / "data"),
        tokenizer_model=str(directory),
        append_eod=True,
    )
    (written,) = run(job, tell=lambda note: None)
    pair = indexed.read(written.prefix)
    assert (pair.dtype, written.receipt.vocab_size, written.rows) == (np.dtype(np.int32), 65_501, 65_501)
    assert indexed.TokenReader(pair).read(0)[-1] == 65_500
    with pytest.raises(ConfigError, match=r"--vocab-size 65500: .* has 65501 ids, .* at least --vocab-size 65501"):
        run(PreprocessJob(**{**vars(job), "vocab_size": 65_500, "overwrite": True}), tell=lambda note: None)
