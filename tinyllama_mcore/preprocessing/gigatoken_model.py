"""A tokenizer in the words of gigatoken, which encodes many times faster.

gigatoken reads a tokenizer.json. It can write one from a SentencePiece model itself (`Tokenizer.from_sentencepiece`),
but in that one a control piece that is spelled out in a text (`<s>`) becomes the control (0.10.0, test_encoder.py
shows it), and writing it takes twice as long. Neighbours: `encoder` proves what comes out against the library that
decides, `alphabet` character by character.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tinyllama_mcore.data.tokenizer import USER_DEFINED, SentencePieceTokenizer, Tokenizer
from tinyllama_mcore.data.tokenizer_json import bpe, normalizer

if TYPE_CHECKING:
    from tinyllama_mcore.data.byte_level import HuggingFaceTokenizer

Encode = Callable[[bytes], np.ndarray]
"""A UTF-8 text to its ids."""
FRESH_FOR_BYTES = 64 << 20
"""Bytes of text that go through gigatoken before it is loaded anew."""


def gigatoken_encode(tokenizer: Tokenizer) -> Encode | None:
    """Gigatoken with the same model, BPE over unchanged text; None where it is not installed or cannot hold the model.

    Texts go through one by one: that is as fast as in batches, and does not import awkward, a quarter of a second.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        described: dict[str, Any] | None = tokenizer_json(tokenizer.proto)
    else:
        described = without_specials(cast("HuggingFaceTokenizer", tokenizer))
    if described is None:
        return None
    try:
        return _Gigatoken(json.dumps(described, ensure_ascii=False))
    except (ImportError, ValueError, RuntimeError):  # the last for a regex that it does not know
        return None


class _Gigatoken:
    """An `Encode` whose memory is bounded.

    gigatoken keeps what it has encoded for ever (0.10.0, `encode`; test_encoder.py shows it): 1 to 2 bytes a byte of
    text or source, 4 of random letters, 10 of random words. So it is loaded anew now and then, in some 50 ms.
    """

    def __init__(self, written: str) -> None:
        """Load a tokenizer.json. ImportError, ValueError where it cannot be loaded."""
        self._written = written
        self._load()

    def _load(self) -> None:
        import gigatoken

        self._encode: Encode | None = None  # the old one goes first
        self._encode = gigatoken.Tokenizer.from_json(self._written).backend.encode
        self._left = FRESH_FOR_BYTES

    def __call__(self, text: bytes) -> np.ndarray:
        """The ids of a text."""
        self._left -= len(text)
        if self._left < 0:
            self._load()
        assert self._encode is not None
        return self._encode(text)


def without_specials(tokenizer: HuggingFaceTokenizer) -> dict[str, Any] | None:
    """The content of a tokenizer.json without special tokens, so that no text gives one, and without its normalizer.

    None where gigatoken may read it otherwise: a normalizer other than NFC (texts in that form come here only), a space
    before each text, bytes that no token spells, added tokens that look around (0.10.0 passes over `single_word`).
    """
    added = [token for token in tokenizer.content["added_tokens"] if not token["special"]]
    held = (
        tokenizer.normalizes_to_nfc_at_most
        and not any(step.get("add_prefix_space") for step in tokenizer.steps("pre_tokenizer"))
        and not any(token[flag] for token in added for flag in ("single_word", "lstrip", "rstrip"))
        and not tokenizer.notes
    )
    changed = {"added_tokens": added, "normalizer": None, "post_processor": None}
    return {**tokenizer.content, **changed} if held else None


def tokenizer_json(proto: Any) -> dict[str, Any]:  # noqa: ANN401
    """The content of tokenizer.json, without controls, so that no text gives one."""
    scores = {piece.piece: piece.score for piece in proto.pieces}
    vocabulary = {piece: token for token, piece in enumerate(scores)}
    return {
        "added_tokens": [
            {"id": token, "content": piece.piece, "special": False, "normalized": False}
            for token, piece in enumerate(proto.pieces)
            if piece.type == USER_DEFINED
        ],
        "normalizer": normalizer(dummy_prefix=proto.normalizer_spec.add_dummy_prefix),
        "model": bpe(vocabulary, scores, unknown=proto.trainer_spec.unk_piece, byte_fallback=True),
    }
