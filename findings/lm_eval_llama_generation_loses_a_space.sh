#!/usr/bin/env bash
# lm-eval 0.4.13 with transformers 5.23.0, tokenizers of Llama's kind (SentencePiece with a dummy prefix: Llama 1 and 2,
# TinyLlama): the first space of what a model generates is lost. HFLM.generate_until decodes the new tokens by
# themselves, and the tokenizer's decoder takes a leading space for the dummy prefix of a text. Most tasks trim what they
# compare. humaneval does not: it runs `prompt + response`. A body whose first line is indented by four spaces comes back
# with three and does not compile, however right it is: only bodies of one line survive. Tokenizers without a dummy prefix
# (GPT-2's, Llama 3's) are not touched, so pass@1 of the two kinds does not compare.
#
# Seen: a model that has learned one function by heart writes its body token for token; lm-eval's response begins with
# three spaces, and prompt + response fails with "unindent does not match any outer indentation level". Decoded behind
# its prompt, the same tokens are the function.
# Fails if the response keeps its first space, or if the model did not write the body.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 tokenizers==0.23.3 \
    sentencepiece==0.2.3 protobuf==7.36.2 accelerate==1.15.0 lm-eval==0.4.13
cd "$home"
HF_HUB_OFFLINE=1 "$home/venv/bin/python" - 2>"$home/stderr" <<'PYTHON' || { tail -5 "$home/stderr"; exit 1; }
import os

import lm_eval
import sentencepiece
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

assert (lm_eval.__version__, transformers.__version__) == ("0.4.13", "5.23.0")
PROMPT = 'def double(x):\n    """Twice x."""\n'
BODY = "    y = x + x\n    return y\n"

os.mkdir("vocabulary")
sentencepiece.SentencePieceTrainer.train(  # the trainer options inside Llama 2's own tokenizer.model
    sentence_iterator=iter((PROMPT + BODY).splitlines() * 20), model_prefix="vocabulary/tokenizer", vocab_size=310,
    model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
    remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, hard_vocab_limit=False, minloglevel=2,
)
tokenizer = LlamaTokenizer.from_pretrained("vocabulary", add_bos_token=False)
tokenizer.save_pretrained("model")
prompt, whole = tokenizer(PROMPT)["input_ids"], tokenizer(PROMPT + BODY)["input_ids"]
assert whole[: len(prompt)] == prompt
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
text = torch.tensor([whole + [tokenizer.eos_token_id]])
for _ in range(150):
    loss = model(text, labels=text).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained("model")

lm = HFLM(pretrained="model", device="cpu", add_bos_token=False)
request = Instance("generate_until", {}, (PROMPT, {"until": ["\ndef"], "max_gen_toks": 40, "do_sample": False}), 0)
(response,) = lm.generate_until([request], disable_tqdm=True)
written = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0]
right = tokenizer.decode(written, skip_special_tokens=True)
print(f"the model's text behind its prompt: {right[len(PROMPT):]!r}")
print(f"lm-eval's response:                 {response!r}")
assert right == PROMPT + BODY, "the model did not learn the function"
compile(right, "right", "exec")
try:
    compile(PROMPT + response, "response", "exec")
except IndentationError as error:
    print(f"prompt + response:                  IndentationError: {error.msg}")
else:
    raise SystemExit("prompt + response compiles: the first space is kept")
assert " " + response == BODY
PYTHON
