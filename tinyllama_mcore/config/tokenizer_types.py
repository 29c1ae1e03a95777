"""Megatron-LM's words for tokenizers: what `--tokenizer-type` names here, and what to give in place of the others.

Neighbours: `flags` reads the flag by `known`, `data.tokenizer_files` opens the file of a type.
"""

from __future__ import annotations

import argparse

SENTENCEPIECE, HUGGING_FACE = "tokenizer.model", "tokenizer.json"
"""The file of each kind, in a directory of Hugging Face's."""
TYPES = {
    "HuggingFaceTokenizer": HUGGING_FACE,
    "SentencePieceTokenizer": SENTENCEPIECE,
    "GPTSentencePieceTokenizer": SENTENCEPIECE,
}
"""Megatron-LM's name -> the file."""
_FROM_JSON = "give HuggingFaceTokenizer, and the tokenizer.json of the same vocabulary as --tokenizer-model"
OTHERS = {
    "Llama2Tokenizer": "puts BOS before each text, which no data here has: give GPTSentencePieceTokenizer",
    "GPT2BPETokenizer": f"reads --vocab-file and --merge-file: {_FROM_JSON}",
    "TikTokenizer": f"reads tiktoken's ranks: {_FROM_JSON}",
    "NullTokenizer": "has no text: leave it out, the receipts of the data name their tokenizer",
}
"""Megatron-LM's other names -> why not, and the nearest."""
FLAGS = {"--vocab-file": "GPT2BPETokenizer", "--merge-file": "GPT2BPETokenizer"}
"""Megatron-LM's flags of a type that is not read here -> the type."""


def known(name: str) -> str:
    """The value of --tokenizer-type. ArgumentTypeError with what to give in its place."""
    if name in TYPES:
        return name
    told = OTHERS.get(name, "is not read here: give the tokenizer.json of a byte-level BPE, or a tokenizer.model")
    raise argparse.ArgumentTypeError(f"must be one of {', '.join(TYPES)}; {name} {told}")


def told(flag: str) -> str | None:
    """What to give in place of a flag of Megatron-LM's tokenizers; None where there is nothing to say."""
    kind = FLAGS.get(flag.replace("_", "-"))
    return None if kind is None else f"{flag} belongs to --tokenizer-type {kind}, which {OTHERS[kind]}"


def rounded_up(rows: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `rows`."""
    return -(-rows // multiple) * multiple
