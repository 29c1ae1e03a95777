"""The parts of a tokenizer.json that say what SentencePiece's BPE does.

Neighbours: `gigatoken_model` makes a whole of them for preprocessing, `hf.tokenizer` one for export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyllama_mcore.data.tokenizer import SPACE

Json = dict[str, Any]


def sequence(kind: str, steps: Sequence[Json]) -> Json:
    """Steps, one after the other; `kind` is the key that they stand under."""
    return {"type": "Sequence", kind: list(steps)}


def replacement(old: str, new: str) -> Json:
    """A step that puts `new` for every `old`."""
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def normalizer(*, dummy_prefix: bool) -> Json:
    """Spaces become U+2581, one more of them before each text where there is a dummy prefix; nothing else changes."""
    prefix = [{"type": "Prepend", "prepend": SPACE}] * dummy_prefix
    return sequence("normalizers", [*prefix, replacement(" ", SPACE)])


def bpe(vocabulary: Mapping[str, int], scores: Mapping[str, float], *, unknown: str, byte_fallback: bool) -> Json:
    """The model.

    Args:
        vocabulary: piece -> id.
        scores: of the pieces that others may be joined to.
        unknown: the piece of what no other spells.
        byte_fallback: spell a character without a piece in bytes.
    """
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": dict(vocabulary),
        "merges": merges(scores),
    }


def merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, best first, as SentencePiece's BPE picks them.

    SentencePiece joins the neighbours whose joint piece scores highest, and of equals the leftmost. Among equals
    (Llama's runs of whitespace, all at -1e9) the longest left part first comes to the same: the leftmost run grows
    before another starts.
    """
    found = [
        (-score, -cut, whole[:cut], whole[cut:])
        for whole, score in scores.items()
        for cut in range(1, len(whole))
        if whole[:cut] in scores and whole[cut:] in scores
    ]
    return [(left, right) for _, _, left, right in sorted(found)]
