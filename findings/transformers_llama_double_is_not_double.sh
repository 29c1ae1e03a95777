#!/usr/bin/env bash
# transformers 5.23.0: LlamaForCausalLM.double() does not compute in float64. LlamaRMSNorm casts its input to float32,
# the eager attention's softmax is asked for in float32, and rotary angles are float32: logits of a "float64" model are
# within float32 rounding of the truth and no nearer. Whoever takes model.double() as a reference to judge float32
# rounding against measures the reference's own rounding.
#
# Seen: float64 logits differ by 1.2e-7 of their size from those with norm, softmax and angles in float64 as well; plain
# float32 logits differ from the latter by 3.0e-7.
# Fails if .double() gives float64 throughout (below 1e-12).
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0
"$home/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

assert transformers.__version__ == "5.23.0", transformers.__version__
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=128, hidden_size=64, intermediate_size=172, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, attn_implementation="eager",
)
model = LlamaForCausalLM(config).eval()
tokens = torch.randint(128, (2, 64))


def rms_norm(self, x):
    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


def eager(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)  # in the scores' own precision
    return (weights @ value).transpose(1, 2).contiguous(), weights


def angles(self, x, position_ids):
    dim = self.inv_freq.shape[0] * 2
    inverse = 1.0 / (self.config.rope_parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=x.dtype) / dim))
    both = torch.cat([position_ids[..., None].to(x.dtype) * inverse] * 2, -1)
    return both.cos(), both.sin()


with torch.no_grad():
    single = model(tokens).logits.double()
    double = model.double()(tokens).logits
    modeling_llama.LlamaRMSNorm.forward = rms_norm
    modeling_llama.LlamaRotaryEmbedding.forward = angles
    modeling_llama.eager_attention_forward = eager
    exact = model(tokens).logits
assert double.dtype == exact.dtype == torch.float64
size = exact.abs().max()
print(f".double(): {float((double - exact).abs().max() / size):.1e} of the logits' size from float64 throughout")
print(f"float32:   {float((single - exact).abs().max() / size):.1e}")
assert (double - exact).abs().max() / size > 1e-9
PYTHON
