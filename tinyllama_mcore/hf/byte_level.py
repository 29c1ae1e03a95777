"""A byte-level tokenizer.json written for `AutoTokenizer`, which then gives the ids that were trained on.

What `transformers` makes of a directory is compared with the `tokenizers` library before the directory appears.
Neighbours: `data.byte_level` is the tokenizer, `tokenizer` writes SentencePiece's, `export` calls `write_byte_level`.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tinyllama_mcore.config.tokenizer_types import HUGGING_FACE
from tinyllama_mcore.data.byte_level import CONFIG, HuggingFaceTokenizer
from tinyllama_mcore.hf.parity import Mismatch
from tinyllama_mcore.hf.tokenizer import PROBES

ROLES = ("bos", "eos", "pad", "unk")
PIECES_A_TEXT = 2000


def write_byte_level(tokenizer: HuggingFaceTokenizer, directory: Path, *, max_length: int) -> dict[str, int]:
    """Write tokenizer.json and tokenizer_config.json.

    tokenizer.json is the file that was trained with, byte for byte, but where it puts BOS before a text: training has
    none, and transformers 5.23 passes over `add_bos_token` there (`findings/transformers_add_bos_token_false.sh`).

    Args:
        tokenizer: the tokenizer.
        directory: an existing directory.
        max_length: longest text that the model is meant for, in tokens.

    Returns:
        "bos", "eos" and "pad" -> id, for the roles that the tokenizer has.
    """
    roles = {role: name for role in ROLES if (name := tokenizer.role(role)) is not None}
    roles["eos"] = tokenizer.token(tokenizer.eod)
    written = directory / HUGGING_FACE
    if _adds_tokens(tokenizer.content.get("post_processor")):
        written.write_text(json.dumps({**tokenizer.content, "post_processor": None}, ensure_ascii=False, indent=2))
    else:
        shutil.copyfile(tokenizer.path, written)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # classes of one model rebuild the pipeline from parts
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        **{f"{role}_token": name for role, name in roles.items()},
        **{key: tokenizer.config[key] for key in ("chat_template",) if key in tokenizer.config},
    }
    (directory / CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return {role: tokenizer.special[name] for role, name in roles.items() if role != "unk"}


def _adds_tokens(post_processor: Any) -> bool:  # noqa: ANN401
    """Whether a step puts tokens around a text."""
    if not isinstance(post_processor, dict):
        return False
    if post_processor.get("type") == "Sequence":
        return any(map(_adds_tokens, post_processor.get("processors") or ()))
    return post_processor.get("type") != "ByteLevel"


def check_same_ids(tokenizer: HuggingFaceTokenizer, directory: Path) -> None:
    """Mismatch naming the first text of which AutoTokenizer, with special tokens read as text, has other ids.

    Args:
        tokenizer: what was trained with.
        directory: what `write_byte_level` wrote to, with the model's config.json, without which AutoTokenizer would ask
            the hub.
    """
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(directory, split_special_tokens=True, local_files_only=True)
    texts = list(_texts(tokenizer))
    for text, expected in zip(texts, tokenizer.encode(texts), strict=True):
        got = loaded(text, verbose=False)["input_ids"]
        if got != expected.tolist():
            at = next((i for i, pair in enumerate(zip(got, expected.tolist(), strict=False)) if pair[0] != pair[1]), 0)
            raise Mismatch(
                f"AutoTokenizer gives other ids than {tokenizer.path} at token {at} of {text[:60]!r}: "
                f"{got[at : at + 4]}, not {expected[at : at + 4].tolist()}"
            )
    if loaded.eos_token_id != tokenizer.eod:
        raise Mismatch(f"AutoTokenizer has eos_token_id {loaded.eos_token_id}; the data end with {tokenizer.eod}")


def _texts(tokenizer: HuggingFaceTokenizer) -> Iterator[str]:
    """Hard texts, each added token among them, and all pieces in order and in a random one, many to a text."""
    yield from PROBES
    yield from (f"a {name}b  {name} c" for name in itertools.islice((*tokenizer.plain, *tokenizer.special), 64))
    pieces = [spelled.decode(errors="ignore") for spelled in tokenizer.spellings()]
    for order in (pieces, Random(1).sample(pieces, len(pieces))):
        for start in range(0, len(order), PIECES_A_TEXT):
            yield "".join(order[start : start + PIECES_A_TEXT])
