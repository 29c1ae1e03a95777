"""A tokenizer.json gives the ids of the `tokenizers` library, and is refused where it does not say what it means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests import small_tokenizers
from tests.data.test_tokenizer import ODD_TEXTS
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data.byte_level import HuggingFaceTokenizer
from tinyllama_mcore.data.tokenizer_content import BYTES

TEXTS = [*ODD_TEXTS, *small_tokenizers.texts(), "a<think>b <think>", "<|endoftext|>x<|im_end|>", "e\u0301 \u1100\u1161"]


@pytest.fixture(scope="module", params=small_tokenizers.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """GPT-2's, Llama-3's, Qwen's."""
    return request.param


@pytest.fixture(scope="module")
def directory(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tokenizer of a kind."""
    return small_tokenizers.make(kind, tmp_path_factory.mktemp(kind))


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """One to spoil."""
    return small_tokenizers.make("gpt2", tmp_path / "gpt2", 300)


def open_at(directory: Path, eod: str | None = None) -> HuggingFaceTokenizer:
    """The tokenizer of a directory."""
    return HuggingFaceTokenizer(directory / "tokenizer.json", eod)


def test_ids_are_the_librarys(kind: str, directory: Path) -> None:
    """Of every text, special tokens as text; decoding gives back what the library's does; bytes spell the text."""
    tokenizer, library = open_at(directory), small_tokenizers.library(directory)
    spellings = tokenizer.spellings()
    for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert ids.tolist() == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.eod not in ids and not set(ids) & set(tokenizer.special.values())
        assert tokenizer.decode(ids) == library.decode(ids.tolist())
        if kind != "qwen":  # whose NFC changes some
            assert b"".join(map(spellings.__getitem__, ids)).decode() == text


def test_sizes_and_roles_are_transformers(kind: str, directory: Path) -> None:
    """The size, what ends a document, and what begins one."""
    tokenizer, reference = open_at(directory), AutoTokenizer.from_pretrained(directory)
    assert (tokenizer.vocab_size, tokenizer.eod) == (len(reference), reference.eos_token_id)
    assert tokenizer.token(tokenizer.eod) == small_tokenizers.END[kind]
    assert tokenizer.bos == (reference.bos_token_id if kind == "llama3" else -1)  # GPT-2's is EOD, Qwen's is none
    assert {byte: char for char, byte in BYTES.items()} == bytes_to_unicode()


def test_the_checksum_is_of_what_decides(directory: Path, tmp_path: Path) -> None:
    """A copy that transformers saves has it, whatever its layout; another merge has not."""
    copy = tmp_path / "copy"
    AutoTokenizer.from_pretrained(directory, tokenizer_class="PreTrainedTokenizerFast").save_pretrained(copy)
    sha256 = open_at(directory).vocabulary.sha256
    assert open_at(copy).vocabulary.sha256 == sha256
    content = small_tokenizers.change(copy)
    small_tokenizers.change(copy, merges=content["model"]["merges"][:-1])
    assert open_at(copy).vocabulary.sha256 != sha256


@pytest.mark.parametrize(
    ("special", "said", "asked", "found"),
    [
        (("<|endoftext|>", "<|im_end|>"), "<|endoftext|>", None, "<|endoftext|>"),
        (("<|endoftext|>", "<|im_end|>"), None, None, "<|endoftext|>"),
        (("<s>", "<end>"), "<end>", None, "<end>"),
        (("<|endoftext|>", "<|im_end|>"), "<|im_end|>", None, r"names <\|im_end\|> as eos_token, and it has <\|endoft"),
        (("<|endoftext|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>", "<|im_end|>"),
        (
            ("</s>", "<|endoftext|>"),
            None,
            None,
            "is not plain .no tokenizer_config.json.: name it with --eod-token, one",
        ),
        (("<s>",), None, None, "name it with --eod-token, one of <s>"),
        (("</s>",), None, "end", "--eod-token end: is no special token of .* those are </s>"),
    ],
)
def test_what_ends_a_document(
    special: tuple[str, ...], said: str | None, asked: str | None, found: str, gpt2: Path
) -> None:
    """What the config says, what is known to end documents, what is asked for; never a guess."""
    added = [
        {"id": 300 + i, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for i, name in enumerate(special)
    ]
    small_tokenizers.change(gpt2, added=added)
    (gpt2 / "tokenizer_config.json").unlink()
    if said is not None:
        (gpt2 / "special_tokens_map.json").write_text(json.dumps({"eos_token": said}))
    if found in special:
        assert open_at(gpt2, asked).eod == 300 + special.index(found)
        return
    with pytest.raises(ConfigError, match=found):
        open_at(gpt2, asked)


def test_bytes_without_a_token_are_told(gpt2: Path) -> None:
    """A tokenizer that was trained without the alphabet of bytes loses text, as the library does."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    made.train_from_iterator(["abc abc"], trainers.BpeTrainer(special_tokens=["</s>"], show_progress=False))
    made.save(str(gpt2 / "tokenizer.json"))
    (gpt2 / "tokenizer_config.json").unlink()
    (note,) = open_at(gpt2).notes
    assert "252 of the 256 bytes have no token (the first is 0x00), and texts lose them" in note


def out_of_order(content: dict) -> None:
    """Two added tokens, the second of which has the id before the first's."""
    (first,) = content["added_tokens"]
    content["added_tokens"] = [{**first, "id": 301}, {**first, "content": "<a>", "id": 300}]


FAULTS: dict[str, Callable[[dict], object]] = {
    "other model": lambda content: content["model"].update(type="WordPiece", unk_token="[UNK]"),
    "unigram": lambda content: content.update(model={"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 0}),
    "no bytes": lambda content: content.update(pre_tokenizer={"type": "Whitespace"}),
    "two of one id": lambda content: content["model"]["vocab"].update(b=content["model"]["vocab"]["a"]),
    "negative": lambda content: content["model"]["vocab"].update(a=-1),
    "a hole": lambda content: content["model"]["vocab"].update(new=1 << 31),
    "beyond": lambda content: content["added_tokens"][0].update(id=5000),
    "taken": lambda content: content["added_tokens"][0].update(id=content["model"]["vocab"]["a"]),
    "out of order": out_of_order,
    "no flag": lambda content: content["added_tokens"][0].pop("special"),
    "dropout": lambda content: content["model"].update(dropout=0.1),
    "a merge of three": lambda content: content["model"].update(merges=[["a", "b", "c"]]),
}


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("other model", "its model is WordPiece; only byte-level BPE is read, as GPT-2's, Llama-3's and Qwen's are"),
        ("unigram", "its model is Unigram; .* Of a SentencePiece model, give its tokenizer.model"),
        ("no bytes", "its pre-tokenizer has no ByteLevel step"),
        ("two of one id", "id .* is that of .* and of .*; ids must differ"),
        ("negative", "the id of 'a' is -1; it must be a whole number, at least 0"),
        ("a hole", "its largest id is 2,147,483,648 .*, and it has only 302 tokens"),
        ("beyond", "'<|endoftext|>' has id 5000, but the tokenizers library gives it 300"),
        ("taken", "id .* is that of 'a' and of '<|endoftext|>'"),
        (
            "out of order",
            "'<|endoftext|>' has id 301, but the tokenizers library gives it 300: it numbers added tokens on",
        ),
        ("no flag", "an added token lacks its content, its id or a flag"),
        ("dropout", "it drops merges at random .dropout 0.1.: make it null"),
        ("a merge of three", "the tokenizers library cannot load it: "),
    ],
)
def test_what_does_not_say_what_it_means_is_refused(what: str, says: str, gpt2: Path) -> None:
    """In one message that names the file. Only the library's own refusals would be seen without these."""
    content = json.loads((gpt2 / "tokenizer.json").read_text())
    FAULTS[what](content)
    (gpt2 / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=says.replace("|", r"\|")) as refused:
        open_at(gpt2)
    assert str(gpt2 / "tokenizer.json") in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}", b'{"a": 1, "a": 2}', b"[" * 100_000])
def test_what_is_no_object_is_refused(content: bytes, gpt2: Path) -> None:
    """Cut short, empty, not UTF-8, a key twice, nested without end; as the config beside it too."""
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (gpt2 / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"--tokenizer-model .*{name}: "):
            open_at(gpt2)
