#!/usr/bin/env bash
# transformers 5.23.0: `"add_bos_token": false` in tokenizer_config.json is passed over where tokenizer.json has a
# post-processor that puts BOS before each text, as Llama-3's has. `AutoTokenizer.from_pretrained(DIR).add_bos_token` says
# False, and every text begins with BOS. So a model that was trained without BOS cannot say so beside an unchanged
# tokenizer.json: the step has to be taken out of that file.
#
# Seen: "add_bos_token False, ids of 'ab' [3, 2]; without the post-processor [2]"
# Fails if BOS is left out, or if it is added without the post-processor too.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 "$home/venv/bin/python" - "$home" <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers

home = Path(sys.argv[1], "model")
home.mkdir()
bos = {"id": 3, "content": "<s>", "special": True}
flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
template = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}},
}
content = {
    "version": "1.0",
    "added_tokens": [bos | flags],
    "post_processor": template,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}
config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "add_bos_token": False}
(home / "config.json").write_text('{"model_type": "llama"}')
(home / "tokenizer_config.json").write_text(json.dumps(config))
ids = []
for kept in (content, content | {"post_processor": None}):
    (home / "tokenizer.json").write_text(json.dumps(kept))
    loaded = transformers.AutoTokenizer.from_pretrained(home)
    assert loaded.add_bos_token is False
    ids.append(loaded("ab")["input_ids"])
print(f"add_bos_token {loaded.add_bos_token}, ids of 'ab' {ids[0]}; without the post-processor {ids[1]}")
assert transformers.__version__ == "5.23.0", transformers.__version__
assert ids == [[3, 2], [2]]
PYTHON
