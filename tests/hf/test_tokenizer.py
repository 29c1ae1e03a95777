"""The exported tokenizer gives SentencePiece's ids, as AutoTokenizer loads it with nothing said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.hf import tokenizer as subject
from tinyllama_mcore.hf.sentencepiece_model import read

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CONTROL = ("<s>", "</s>")


def load(model: Path, directory: Path, **options: object) -> tuple[SentencePieceProcessor, PreTrainedTokenizerBase]:
    """SentencePiece, and what AutoTokenizer makes of the exported directory."""
    subject.write_tokenizer(model, directory, max_length=128)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return SentencePieceProcessor(model_file=str(model)), AutoTokenizer.from_pretrained(directory, **options)


def differing(reference: SentencePieceProcessor, converted: PreTrainedTokenizerBase, documents: list[str]) -> list[str]:
    """The documents whose ids differ."""
    return [text for text in documents if reference.encode(text) != converted.encode(text)]


def test_code_and_hard_texts_have_the_same_ids(tokenizer_model: Path, code: list[str], tmp_path: Path) -> None:
    """Zero documents differ, and decoding gives the text back."""
    reference, converted = load(tokenizer_model, tmp_path)
    plain = [text for text in (*code, *subject.PROBES) if not any(token in text for token in CONTROL)]
    assert len(plain) > 100
    assert differing(reference, converted, plain) == []
    assert [converted.decode(converted.encode(text)) for text in plain[:50]] == plain[:50]


def test_control_tokens_in_a_text_are_ids_unless_switched_off(tokenizer_model: Path, tmp_path: Path) -> None:
    """Hugging Face's convention is the default; one option gives SentencePiece's."""
    reference, converted = load(tokenizer_model, tmp_path)
    assert converted.encode("</s>") == [reference.eos_id()]
    exact = AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    assert differing(reference, exact, list(subject.PROBES)) == []


def test_the_text_unk_stays_text(tokenizer_model: Path, tmp_path: Path) -> None:
    """Wikitext writes <unk> for rare words; with byte fallback it must not become an id that training never saw."""
    reference, converted = load(tokenizer_model, tmp_path)
    assert converted.encode("the <unk> word") == reference.encode("the <unk> word")
    assert converted.unk_token is None


def test_no_bos_and_the_known_roles(tokenizer_model: Path, tmp_path: Path) -> None:
    """What the training data has: no BOS; </s> ends a document."""
    _, converted = load(tokenizer_model, tmp_path)
    assert converted("x")["input_ids"][0] != converted.bos_token_id
    assert (converted.bos_token_id, converted.eos_token_id, converted.pad_token_id) == (1, 2, None)
    assert converted.model_max_length == 128


@pytest.mark.parametrize(
    "changes",
    [
        {"user_defined_symbols": ["<|im_start|>", "==", "==="]},
        {"byte_fallback": False, "character_coverage": 0.99},
        {"add_dummy_prefix": False},
        {"control_symbols": ["<mask>"], "pad_id": 3},
        {"allow_whitespace_only_pieces": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_models_of_the_kind(
    changes: dict, train_tokenizer: Callable[..., Path], code: list[str], tmp_path: Path
) -> None:
    """User-defined symbols, no byte fallback, no dummy prefix, further control tokens."""
    reference, converted = load(train_tokenizer(**changes), tmp_path, split_special_tokens=True)
    texts = [*code[:30], "a ==== b == c<|im_start|>x <mask>", "λ → ∀x"]
    assert differing(reference, converted, texts) == []


SYMBOLS = ("<sep>", "<|im_start|>", "<|im_end|>", "==", "===", "\u2581\u2581\u2581X", "\n\n", "a b")
AROUND = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "a",
    "a ",
    " a",
    "a\n",
    "</s>",
    "<sep>",
    "=",
    "X",
    "é",
    "你",
    "<0x0A>",
    "<unk>",
)


@pytest.fixture(scope="module")
def with_symbols(train_tokenizer: Callable[..., Path]) -> Path:
    """A SentencePiece model with user-defined symbols: as chat formats have, of each other's beginning, with spaces."""
    return train_tokenizer(user_defined_symbols=list(SYMBOLS))


def test_user_defined_symbols_have_the_same_ids_wherever_they_stand(with_symbols: Path, tmp_path: Path) -> None:
    """Alone, at either end, beside spaces, newlines and each other: SentencePiece's ids, and the text comes back."""
    reference, converted = load(with_symbols, tmp_path, split_special_tokens=True)
    spelled = [*SYMBOLS, *(symbol.replace("\u2581", " ") for symbol in SYMBOLS if "\u2581" in symbol)]
    texts = [before + symbol + after for symbol in spelled for before in AROUND for after in AROUND]
    texts += [first + second for first in spelled for second in spelled]
    assert differing(reference, converted, texts) == []
    plain = [text for text in texts if "\u2581" not in text]
    assert [converted.decode(converted.encode(text)) for text in plain] == plain


def test_llama_cpp_is_told_of_user_defined_symbols(with_symbols: Path, tokenizer_model: Path, tmp_path: Path) -> None:
    """added_tokens.json has every one by SentencePiece's own id, as it stands in a text; without any there is none."""
    load(with_symbols, tmp_path)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(with_symbols.read_bytes())
    expected = {piece.piece.replace("\u2581", " "): i for i, piece in enumerate(proto.pieces) if piece.type == 4}
    assert json.loads((tmp_path / "added_tokens.json").read_text()) == expected
    assert len(expected) == len(SYMBOLS)
    (tmp_path / "plain").mkdir()
    load(tokenizer_model, tmp_path / "plain")
    assert not (tmp_path / "plain" / "added_tokens.json").exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "unigram"}, "not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises"),
        ({"remove_extra_whitespaces": True}, "removes whitespace"),
        ({"treat_whitespace_as_suffix": True}, "suffix"),
    ],
)
def test_what_cannot_be_exact_is_refused(changes: dict, why: str, train_tokenizer: Callable[..., Path]) -> None:
    """The message says what the model does that tokenizer.json cannot."""
    with pytest.raises(ConfigError, match=why):
        read(train_tokenizer(**changes))


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    """Another file's bytes, or no file."""
    (tmp_path / "tokenizer.model").write_text("hello")
    with pytest.raises(ConfigError, match=r"tokenizer\.model is not a SentencePiece model"):
        read(tmp_path / "tokenizer.model")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none.model")


def test_the_check_sees_a_wrong_order_of_merges(tokenizer_model: Path) -> None:
    """Planted: the worst merge first."""
    converted = subject.tokenizer_json(read(tokenizer_model))
    converted["model"]["merges"].reverse()
    with pytest.raises(ConfigError, match="cannot be exported exactly: at token"):
        subject.check_same_ids(tokenizer_model, converted)


def test_the_llama_class_would_be_wrong(tokenizer_model: Path, tmp_path: Path) -> None:
    """Why tokenizer_config.json names the generic class: seen in transformers 5.23; when this fails, it was mended."""
    reference, _ = load(tokenizer_model, tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(written | {"tokenizer_class": "LlamaTokenizer"}))
    assert differing(reference, AutoTokenizer.from_pretrained(tmp_path), [" a", "  b"]) == [" a", "  b"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs Llama 2's tokenizer and wikitext beside the repository")
def test_llama_2_on_wikitext_and_code(code: list[str], tmp_path: Path) -> None:
    """The tokenizer of the 1.1B model: zero documents differ."""
    reference, converted = load(SHARED / "llama2_tokenizer.model", tmp_path)
    wikitext = (SHARED / "wikitext2_valid.txt").read_text(encoding="utf-8")
    documents = [wikitext, *wikitext.splitlines(keepends=True)[::7], *code[::12]]
    assert len(documents) > 500
    assert differing(reference, converted, documents) == []
