#!/usr/bin/env bash
# tokenizers 0.23.3: a tokenizer.json whose added tokens are not listed in the order of their ids, or whose ids do not go
# on right after the vocabulary, loads without an error or a warning, and its added tokens get other ids than the file
# says: the next free ones, in the order of the list. `{"id": 5, "content": "<end>"}` becomes 3. So data that end with
# `token_to_id("<end>")` and a model whose config.json says eos_token_id 5 do not agree, and two files that say the same
# ids in another order give different tokens.
#
# Seen: "listed backwards: the file says {'<pad>': 4, '<end>': 3}, loaded as {'<pad>': 3, '<end>': 4}"
#       "with a gap: the file says {'<end>': 5}, loaded as {'<end>': 3}"
# Fails if the library takes the ids of the file, or refuses the file.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet tokenizers==0.23.3
"$home/venv/bin/python" - <<'PYTHON'
import json

import tokenizers

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def loaded(what: str, **ids: int) -> None:
    said = {f"<{name}>": number for name, number in ids.items()}
    added = [{"id": number, "content": name, **FLAGS} for name, number in said.items()]
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
    found = {name: tokenizer.token_to_id(name) for name in said}
    print(f"{what}: the file says {said}, loaded as {found}")
    assert tokenizers.__version__ == "0.23.3" and found != said


loaded("listed backwards", pad=4, end=3)
loaded("with a gap", end=5)
PYTHON
