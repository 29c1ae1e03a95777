"""A SentencePiece `tokenizer.model` written as the files that Hugging Face's tokenizers read, with the same ids.

Why: transformers 5 converts a bare tokenizer.model wrongly (it merges runs of whitespace first and drops the dummy
prefix before a leading space), so the export brings a finished `tokenizer.json`, checked here against SentencePiece.
Neighbours: `export` calls `write_tokenizer`; `data` holds the tokenizer that made the training ids.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from tinyllama_mcore.config.schema import ConfigError

SPACE = "▁"  # U+2581, SentencePiece's visible space
Piece = sentencepiece_model_pb2.ModelProto.SentencePiece

PROBES = (  # what conversions get wrong: whitespace, bytes, unnormalised Unicode, control tokens as text
    *("", " ", "  ", "\n", "\t", "\0", "a", " a", "  a", "a ", "a  b   c    d", " \n  \n\tx", "\r\n", f"a{SPACE}b {SPACE}"),
    *(" " * length + "x" + " " * length for length in range(1, 70, 7)),
    *("def f(x):\n    return {\n\t'k': x[0]**2,\n        }\n", "0123456789 3.14159 1e-05", "aaaa abab aabb" * 9),
    *("ﬁ ½ Å Å ǆ é é", "你好,世界", "👩‍👩‍👧‍👦 🇸🇪", "\u200b\ufeff\u00a0\u3000|", "<s> a</s><unk> <0x0A>", "<pad>x<s>"),
)


def read_model(path: Path) -> sentencepiece_model_pb2.ModelProto:
    """Parse a SentencePiece model. ConfigError if it is none, or not of the kind that tokenizer.json can hold exactly."""
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"tokenizer model {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # protobuf's DecodeError
        raise ConfigError(f"tokenizer model {path} is not a SentencePiece model") from error
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    faults = (
        (trainer.model_type != trainer.BPE, "its model type is not BPE"),
        (bool(normalizer.precompiled_charsmap), "it normalises text (train it with the rule `identity`)"),
        (normalizer.remove_extra_whitespaces, "it removes whitespace (train it with remove_extra_whitespaces=false)"),
        (trainer.treat_whitespace_as_suffix, "it writes whitespace as a suffix"),
        (any(piece.type == Piece.UNUSED for piece in model.pieces), "it has unused pieces"),
    )
    for found, what in faults:
        if found:
            raise ConfigError(f"tokenizer model {path} cannot be exported exactly: {what}")
    return model


def merges(pieces: dict[str, float]) -> list[list[str]]:
    """Every way to join two pieces into a third, best first, as SentencePiece's BPE picks them.

    SentencePiece joins the neighbours whose joint piece scores highest, and of equals the leftmost. Among equals (Llama's
    runs of whitespace, all at -1e9) the longest left part first gives the same: the leftmost run grows before another starts.
    """
    found = [
        (-score, -cut, whole[:cut], whole[cut:])
        for whole, score in pieces.items()
        for cut in range(1, len(whole))
        if whole[:cut] in pieces and whole[cut:] in pieces
    ]
    return [[left, right] for _, _, left, right in sorted(found)]


def tokenizer_json(model: sentencepiece_model_pb2.ModelProto) -> dict[str, Any]:
    """The content of tokenizer.json.

    Control tokens and the unknown token are "special added tokens", as everywhere at Hugging Face: written in a text they
    become their ids, where SentencePiece reads plain text (`split_special_tokens=True` at load switches that off).
    """
    named = (Piece.CONTROL, Piece.UNKNOWN)
    special = [(index, piece.piece) for index, piece in enumerate(model.pieces) if piece.type in named]
    symbols = sorted((piece.piece for piece in model.pieces if piece.type == Piece.USER_DEFINED), key=len, reverse=True)
    prefix = model.normalizer_spec.add_dummy_prefix
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    pattern = {"Regex": "|".join(re.escape(symbol) for symbol in symbols)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": text, **ADDED_TOKEN} for index, text in special],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace(" ", SPACE)]},
        "pre_tokenizer": {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False} if symbols else None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[model.trainer_spec.unk_id].piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(piece.type == Piece.BYTE for piece in model.pieces),
            "ignore_merges": bool(symbols),  # a symbol that `Split` set apart is one piece, whatever could be merged
            "vocab": {piece.piece: index for index, piece in enumerate(model.pieces)},
            "merges": merges({piece.piece: piece.score for piece in model.pieces if piece.type == Piece.NORMAL}),
        },
    }


ADDED_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def replace(old: str, new: str) -> dict[str, Any]:
    """A step of tokenizer.json that puts `new` for every `old`."""
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def tokenizer_config(model: sentencepiece_model_pb2.ModelProto, max_length: int) -> dict[str, Any]:
    """The content of tokenizer_config.json.

    The class is the generic one on purpose: `LlamaTokenizer` of transformers 5 rebuilds the pipeline and takes only
    vocabulary and merges from tokenizer.json. No BOS is added, because the training data has none.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        **special_tokens(model),
    }


def special_tokens(model: sentencepiece_model_pb2.ModelProto) -> dict[str, str]:
    """The content of special_tokens_map.json: the roles that the model has, by Hugging Face's names."""
    spec = model.trainer_spec
    ids = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "unk_token": spec.unk_id, "pad_token": spec.pad_id}
    return {role: model.pieces[index].piece for role, index in ids.items() if index >= 0}


def check_same_ids(path: Path, converted: dict[str, Any]) -> None:
    """Encode texts made of every piece, and known hard ones, with both. ConfigError naming the first that differs."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = Tokenizer.from_str(json.dumps(converted))
    tokenizer.encode_special_tokens = True  # read control tokens as text, as SentencePiece does
    for text in probe_texts(list(converted["model"]["vocab"])):
        expected, got = processor.encode(text), tokenizer.encode(text, add_special_tokens=False).ids
        if expected != got:
            at = next((i for i, pair in enumerate(zip(expected, got, strict=False)) if pair[0] != pair[1]), len(got))
            raise ConfigError(
                f"tokenizer model {path} cannot be exported exactly: at token {at} of {text[:60]!r} SentencePiece gives "
                f"{expected[at : at + 4]}, the converted tokenizer {got[at : at + 4]}"
            )


def probe_texts(pieces: list[str]) -> Iterator[str]:
    """`PROBES`, then all pieces in the order of the vocabulary and in two fixed random ones, 2,000 to a text."""
    yield from PROBES
    for seed in range(3):
        order = pieces if seed == 0 else Random(seed).sample(pieces, len(pieces))
        for start in range(0, len(order), 2000):
            yield "".join(order[start : start + 2000]).replace(SPACE, " ")


def write_tokenizer(model_path: Path, directory: Path, *, max_length: int) -> sentencepiece_model_pb2.ModelProto:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and tokenizer.model; return the parsed model.

    `max_length` is in tokens. ConfigError if the ids would differ from SentencePiece's.
    """
    model = read_model(model_path)
    converted = tokenizer_json(model)
    check_same_ids(model_path, converted)
    contents = {
        "tokenizer.json": converted,
        "tokenizer_config.json": tokenizer_config(model, max_length),
        "special_tokens_map.json": special_tokens(model),
    }
    for name, content in contents.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(model_path, directory / "tokenizer.model")
    return model
