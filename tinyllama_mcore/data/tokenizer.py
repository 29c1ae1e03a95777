"""The SentencePiece tokenizer, and the vocabulary that data, tokenizer and model have to agree on.

Ids are SentencePiece's own; nothing is added to them here (EOD is `preprocess`'s affair, BOS is never written).
Neighbours: `encoder` makes it fast, `receipt` records the vocabulary, `blend` hands the vocabulary to Megatron.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from tinyllama_mcore.config.errors import ConfigError

SPACE = "\u2581"
"""How pieces spell a space."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""`SentencePiece.Type` of sentencepiece_model.proto."""
NO_TEXT = (UNKNOWN, CONTROL, UNUSED)
BPE = 2
"""`TrainerSpec.ModelType` of sentencepiece_model.proto."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What tokens mean. It stands in for Megatron's `GPTDatasetConfig.tokenizer`, which only asks for these names."""

    vocab_size: int
    """Pieces, v; every token id is below it."""
    eod: int
    """Id that ends a document (the model's `</s>`)."""
    sha256: str
    """Checksum of the tokenizer's model file."""

    @property
    def pad(self) -> int:
        """Megatron masks this id out of the loss; -1 is none, since samples here are always full."""
        return -1

    @property
    def unique_identifiers(self) -> dict[str, int | str]:
        """What Megatron writes into its description of a dataset."""
        return asdict(self)


class SentencePieceTokenizer:
    """A SentencePiece model file (`tokenizer.model`), as Llama's is."""

    def __init__(self, path: str | Path) -> None:
        """Load the model at `path`. ConfigError if it is missing, broken or has no end-of-sentence piece."""
        self.path = str(path)
        try:
            self._file = model = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"--tokenizer-model {path}: cannot be read ({error.strerror})") from None
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ConfigError(
                f"--tokenizer-model {path}: not a SentencePiece model ({len(model)} bytes); give a tokenizer.model file"
            ) from None
        if self._model.eos_id() < 0:
            raise ConfigError(f"--tokenizer-model {path}: has no </s> piece, which ends each document")
        self.vocabulary = Vocabulary(
            vocab_size=self._model.vocab_size(), eod=self._model.eos_id(), sha256=hashlib.sha256(model).hexdigest()
        )

    @property
    def vocab_size(self) -> int:
        """Pieces, v."""
        return self.vocabulary.vocab_size

    @property
    def bos(self) -> int:
        """Id of `<s>`, which is never written into data; -1 where the model has none."""
        return self._model.bos_id()

    @property
    def eod(self) -> int:
        """Id that ends a document."""
        return self.vocabulary.eod

    @property
    def unk(self) -> int:
        """Id of what no other piece spells."""
        return self._model.unk_id()

    @property
    def pieces(self) -> list[str]:
        """How each id is spelled, [v]; a space as U+2581."""
        return [self._model.id_to_piece(token) for token in range(self.vocab_size)]

    def spellings(self) -> list[bytes]:
        """The text that each id stands for, in UTF-8; empty for what is no text. A byte piece is its byte."""
        return [
            bytes([int(piece.piece[3:-1], 16)])  # <0x0A>
            if piece.type == BYTE
            else b""
            if piece.type in NO_TEXT
            else piece.piece.replace(SPACE, " ").encode()
            for piece in self.proto.pieces
        ]

    def spelled_bytes(self) -> np.ndarray:
        """UTF-8 bytes of text that each id stands for, uint16 [v]; 0 for what is no text."""
        return np.array([len(spelled) for spelled in self.spellings()], dtype=np.uint16)

    @functools.cached_property
    def proto(self) -> Any:  # noqa: ANN401
        """The model file as SentencePiece's own `ModelProto`; only read it."""
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        proto.ParseFromString(self._file)
        return proto

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32 [tokens], with neither BOS nor EOS. A text must be valid Unicode."""
        encoded = self._model.encode(list(texts), out_type=int, num_threads=1)
        return [np.array(ids, dtype=np.int32) for ids in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; control pieces such as `</s>` have none."""
        return self._model.decode([int(token) for token in ids])
