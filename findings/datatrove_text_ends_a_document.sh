#!/usr/bin/env bash
# datatrove 0.10.1 (tokenizers 0.23.3): MegatronDocumentTokenizer writes a .bin/.idx pair for Megatron-LM. Where a text holds
# the characters `<|endoftext|>`, it writes the id of the end of a document in the middle of that document: the tokenizer
# is called so that it looks for added tokens in raw text, and the step has no option against it. The .idx still
# counts one document, so the two files disagree about where documents end, and what goes by the id (Megatron-LM's
# --reset-attention-mask and --eod-mask-loss, a reader of nanotron's flat files) cuts it there. Web pages and source about
# language models hold these characters.
#
# Seen: "2 documents in the index, 3 ends in the tokens: [[3, 2, 4, 2], [3, 2]]"
# Fails if the text becomes ordinary tokens, or the index has three documents.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet datatrove==0.10.1 tokenizers==0.23.3 numpy
cd "$home"
"$home/venv/bin/python" - <<'PYTHON' 2>"$home/log" || { cat "$home/log"; exit 1; }
import json
import struct
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

END = "<|endoftext|>"
vocabulary = {"<unk>": 0, "x": 1, END: 2, "before": 3, "after": 4}
added = {"id": 2, "content": END, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
Path("tokenizer.json").write_text(json.dumps({
    "version": "1.0", "added_tokens": [added], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model,
}))
step = MegatronDocumentTokenizer("out", tokenizer_name_or_path="tokenizer.json", eos_token=END)
texts = ["before " + END + " after", "before"]
list(step.run(Document(text=text, id=str(i)) for i, text in enumerate(texts)) or ())
(bin_path,) = Path("out").rglob("*.bin")
index = bin_path.with_suffix(".idx").read_bytes()
assert index[:9] == b"MMIDIDX\x00\x00"
sequences = struct.unpack_from("<Q", index, 18)[0]
lengths = np.frombuffer(index, dtype="<i4", count=sequences, offset=34)
tokens = np.frombuffer(bin_path.read_bytes(), dtype="<u2")
documents = [part.tolist() for part in np.split(tokens, lengths.cumsum()[:-1])]
ends = sum(document.count(2) for document in documents)
print(f"{sequences} documents in the index, {ends} ends in the tokens: {documents}")
assert version("datatrove") == "0.10.1" and version("tokenizers") == "0.23.3"
assert sequences == 2 and ends == 3
PYTHON
