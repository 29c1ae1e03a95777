"""A SentencePiece `tokenizer.model` read as plain data, if it is of the kind that tokenizer.json can hold exactly.

Why: protobuf's words stay in this file. Neighbours: `tokenizer` turns the data into Hugging Face's files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data.tokenizer import BPE, BYTE, UNUSED


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One entry of the vocabulary; its place is its id."""

    text: str
    score: float
    """BPE joins the neighbours whose joint piece scores highest."""
    kind: int
    """`SentencePiece.Type`: NORMAL to BYTE of `data.tokenizer`."""


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What encoding needs to know."""

    pieces: tuple[Piece, ...]
    roles: dict[str, int]
    """"bos", "eos", "unk", "pad" -> id, for the roles that the model has."""
    dummy_prefix: bool
    """Whether a space is put before each text."""

    @property
    def falls_back_to_bytes(self) -> bool:
        """Whether a character without a piece is spelled in bytes, so that no text gives the unknown token."""
        return any(piece.kind == BYTE for piece in self.pieces)

    def of_kind(self, *kinds: int) -> dict[str, int]:
        """Text -> id of the pieces of some kinds, in the order of ids."""
        return {piece.text: index for index, piece in enumerate(self.pieces) if piece.kind in kinds}


def read(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model.

    Raises:
        ConfigError: it is no SentencePiece model, or it encodes in a way that tokenizer.json cannot say exactly.
    """
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"tokenizer model {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError, which has no public home common to its versions
        raise ConfigError(f"tokenizer model {path} is not a SentencePiece model") from error
    normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
    pieces = tuple(Piece(text=p.piece, score=p.score, kind=p.type) for p in proto.pieces)
    for found, what in (
        (not pieces, "it has no pieces"),
        (trainer.model_type != BPE, "its model type is not BPE"),
        (bool(normalizer.precompiled_charsmap), "it normalises text (train with normalization_rule_name=identity)"),
        (normalizer.remove_extra_whitespaces, "it removes whitespace (train with remove_extra_whitespaces=false)"),
        (not normalizer.escape_whitespaces, "it keeps spaces as they are"),
        (trainer.treat_whitespace_as_suffix, "it writes whitespace as a suffix"),
        (any(piece.kind == UNUSED for piece in pieces), "it has unused pieces"),
    ):
        if found:
            raise ConfigError(f"tokenizer model {path} cannot be exported exactly: {what}")
    roles = {"bos": trainer.bos_id, "eos": trainer.eos_id, "unk": trainer.unk_id, "pad": trainer.pad_id}
    return SentencePieceModel(
        pieces=pieces,
        roles={role: index for role, index in roles.items() if index >= 0},
        dummy_prefix=normalizer.add_dummy_prefix,
    )
