"""The tokenizer of a run written as the files that Hugging Face's tokenizers read, with the same ids.

Why: transformers 5 converts a bare tokenizer.model wrongly (it joins runs of whitespace first and drops the dummy
prefix before a leading space), so the export brings a finished `tokenizer.json`, checked here against SentencePiece.
Neighbours: `sentencepiece_model` reads the model; `byte_level` writes a tokenizer that was a tokenizer.json before;
`export` calls `write_tokenizer`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, models

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data.tokenizer import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED
from tinyllama_mcore.data.tokenizer_json import bpe, merges, normalizer, replacement, sequence
from tinyllama_mcore.hf.sentencepiece_model import SentencePieceModel, read

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
"""An added token's flags: found anywhere in a text as it is, and skipped when decoding skips special tokens."""

PROBES = (  # what conversions get wrong: whitespace, bytes, unnormalised Unicode, control tokens as text
    *("", " ", "  ", "\n", "\t", "\0", "a", " a", "  a", "a ", "a  b   c    d", " \n  \n\tx", "\r\n"),
    *(" " * length + "x" + " " * length for length in range(1, 70, 7)),
    *("def f(x):\n    return {\n\t'k': x[0]**2,\n        }\n", "0123456789 3.14159 1e-05", "aaaa abab aabb" * 9),
    *("\ufb01 \u00bd \u212b A\u030a \u01c6 e\u0301 \u00e9", "你好,世界", "👩‍👩‍👧‍👦 🇸🇪", "\u200b\ufeff\u00a0\u3000|"),
    *("<s> a</s><unk> <0x0A>", "<pad>x<s>", f"a{SPACE}b {SPACE}"),
)


def special_tokens(model: SentencePieceModel) -> dict[str, int]:
    """The pieces that are Hugging Face's special tokens, with their ids.

    The unknown token is one only where text can give it. With byte fallback it would do nothing but turn the text
    "<unk>", which wikitext is full of, into an id that training never saw.
    """
    return model.of_kind(CONTROL) if model.falls_back_to_bytes else model.of_kind(CONTROL, UNKNOWN)


def tokenizer_json(model: SentencePieceModel) -> dict[str, Any]:
    """The content of tokenizer.json.

    Special tokens are added tokens, as everywhere at Hugging Face: written in a text they become their ids, where
    SentencePiece reads plain text (`split_special_tokens=True` at load switches that off).
    """
    symbols = sorted(model.of_kind(USER_DEFINED), key=len, reverse=True)  # the longest match wins
    vocabulary, scores = _vocabulary(model)
    unknown = model.pieces[model.roles["unk"]].text
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": text, **FLAGS} for text, index in special_tokens(model).items()],
        "normalizer": normalizer(dummy_prefix=model.dummy_prefix),
        "pre_tokenizer": _set_apart(symbols, model) if symbols else None,
        "post_processor": None,
        "decoder": sequence(
            "decoders",
            [
                *(replacement(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}),
                *[{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * model.dummy_prefix,
            ],
        ),
        "model": {
            **bpe(vocabulary, scores, unknown=unknown, byte_fallback=model.falls_back_to_bytes),
            "ignore_merges": bool(symbols),  # a symbol that was set apart is one piece, whatever could be joined
        },
    }


def _set_apart(symbols: Sequence[str], model: SentencePieceModel) -> dict[str, Any]:
    """Steps of tokenizer.json that cut the text around user-defined symbols, the first that matches.

    What is left between two cuts is looked up whole (`ignore_merges`). Were it the spelling of a control or a byte
    piece, it would become that piece, where SentencePiece reads text: such a rest is cut after its first piece.
    """
    spellings = model.of_kind(CONTROL, UNKNOWN, BYTE)
    unknown = model.pieces[model.roles["unk"]].text
    vocabulary, scores = _vocabulary(model)
    fallback = model.falls_back_to_bytes
    plain = Tokenizer(models.BPE(vocabulary, merges(scores), unk_token=unknown, byte_fallback=fallback))
    first = {text: text[: plain.encode(text).offsets[0][1]] for text in spellings}
    rests = "|".join(f"{re.escape(one)}(?={re.escape(text[len(one) :])}\\z)" for text, one in first.items())
    return sequence("pretokenizers", [_split("|".join(map(re.escape, symbols))), _split(f"\\A(?:{rests})")])


def _split(regex: str) -> dict[str, Any]:
    """A step of tokenizer.json that makes each match a piece of text of its own."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _vocabulary(model: SentencePieceModel) -> tuple[dict[str, int], dict[str, float]]:
    """Piece -> id, and the scores of the pieces that are joined."""
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind == NORMAL}
    return {piece.text: index for index, piece in enumerate(model.pieces)}, scores


def special_tokens_map(model: SentencePieceModel) -> dict[str, str]:
    """The content of special_tokens_map.json: the roles that special tokens have, by Hugging Face's names."""
    texts = {index: text for text, index in special_tokens(model).items()}
    return {f"{role}_token": texts[index] for role, index in model.roles.items() if index in texts}


def added_tokens(model: SentencePieceModel) -> dict[str, int]:
    """The content of added_tokens.json: user-defined symbols as they stand in a text, with their ids.

    llama.cpp's converter learns only from this file that they are not normal pieces: SentencePiece's Python package
    does not say so, and by tokenizer_config.json it would make control tokens of `<|im_start|>` and its like (seen in
    the source of llama-cpp-python 0.3.36). In `added_tokens` of tokenizer.json they would cost exactness: tokenizers
    cuts those out before it puts the dummy prefix, so that a text that begins with one loses SentencePiece's first
    piece. There `_set_apart` finds them.
    """
    return {text.replace(SPACE, " "): index for text, index in model.of_kind(USER_DEFINED).items()}


def tokenizer_config(model: SentencePieceModel, max_length: int) -> dict[str, Any]:
    """The content of tokenizer_config.json.

    The class is the generic one on purpose: `LlamaTokenizer` of transformers 5 rebuilds the pipeline and takes only
    vocabulary and merges from tokenizer.json (seen in 5.23: all lines of wikitext but one differ). No BOS is added,
    because the training data has none. `add_prefix_space` is for llama.cpp's converter, which knows no other place. An
    empty `added_tokens_decoder` keeps transformers from reading `added_tokens`, which would change ids.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": model.dummy_prefix,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        **({"added_tokens_decoder": {}} if added_tokens(model) else {}),
        **special_tokens_map(model),
    }


def check_same_ids(path: Path, converted: dict[str, Any]) -> None:
    """Encode texts made of every piece, and known hard ones, with both. ConfigError naming the first that differs."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = Tokenizer.from_str(json.dumps(converted))
    tokenizer.encode_special_tokens = True  # read special tokens as text, as SentencePiece does
    symbols = [piece.replace(SPACE, " ") for piece in read(path).of_kind(USER_DEFINED)]
    for text in probe_texts(list(converted["model"]["vocab"]), symbols):
        expected, got = processor.encode(text), tokenizer.encode(text, add_special_tokens=False).ids
        if expected != got:
            at = next((i for i, pair in enumerate(zip(expected, got, strict=False)) if pair[0] != pair[1]), len(got))
            raise ConfigError(
                f"tokenizer model {path} cannot be exported exactly: at token {at} of {text[:60]!r} SentencePiece "
                f"gives {expected[at : at + 4]}, the converted tokenizer {got[at : at + 4]}"
            )


def probe_texts(pieces: Sequence[str], symbols: Sequence[str] = ()) -> Iterator[str]:
    """`PROBES`, then all pieces in the order of the vocabulary and in two fixed random ones, 2,000 to a text.

    With user-defined symbols: each of `PROBES` around one, and all pieces with one between them.
    """
    yield from PROBES
    for symbol in symbols[:8]:
        yield from (text.join((symbol, symbol)) for text in PROBES)
        yield from (symbol.join((text, text)) for text in PROBES)
    for start in range(0, len(pieces) if symbols else 0, 2000):
        yield symbols[0].join(pieces[start : start + 2000]).replace(SPACE, " ")
    for order in (pieces, Random(1).sample(pieces, len(pieces)), Random(2).sample(pieces, len(pieces))):
        for start in range(0, len(order), 2000):
            yield "".join(order[start : start + 2000]).replace(SPACE, " ")


def write_tokenizer(
    model_path: Path, directory: Path, *, max_length: int, eod: int | None = None
) -> SentencePieceModel:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json, and copy tokenizer.model.

    With user-defined symbols, added_tokens.json too.

    Args:
        model_path: the SentencePiece model.
        directory: an existing directory.
        max_length: longest text that the model is meant for, in tokens.
        eod: id that ends a document; None: the model's `</s>`.

    Returns:
        The SentencePiece model, read.

    Raises:
        ConfigError: the ids would differ from SentencePiece's.
    """
    model = read(model_path)
    if eod is not None:
        model = replace(model, roles={**model.roles, "eos": eod})
    converted = tokenizer_json(model)
    check_same_ids(model_path, converted)
    contents = {
        "tokenizer.json": converted,
        "tokenizer_config.json": tokenizer_config(model, max_length),
        "special_tokens_map.json": special_tokens_map(model),
        **({"added_tokens.json": added_tokens(model)} if added_tokens(model) else {}),
    }
    for name, content in contents.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(model_path, directory / "tokenizer.model")
    return model
