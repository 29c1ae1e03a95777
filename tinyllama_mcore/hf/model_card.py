"""The README.md of an exported model: where it comes from, what was checked, how to load it.

Neighbours: `export` writes it last, when the figures are known.
"""

from __future__ import annotations

from tinyllama_mcore.checkpoint.manifest import Manifest
from tinyllama_mcore.config.schema import ModelConfig
from tinyllama_mcore.hf import families
from tinyllama_mcore.hf.parity import Parity

CARD = "README.md"

TEXT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [{family}]
---
# A model pretrained with tinyllama_mcore

| | |
|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))
```

The tokenizer adds no BOS, because the training data has none: a document is its tokens and `{end}` at the end. The text
`{end}` becomes the special token, as usual with Hugging Face; `split_special_tokens=True` at load reads it as text, as
training did.
"""


def model_card(
    manifest: Manifest, model: ModelConfig, parameters: int, dtype: str, parity: Parity | None, *, end: str
) -> str:
    """The card, in Markdown; `end` is the token that ends a document."""
    sequences, seq_length = manifest.state.consumed_samples, manifest.config.batch.seq_length
    facts = {
        "recipe": manifest.config.recipe,
        "parameters": f"{parameters:,} in {dtype}",
        "shape": f"{model.num_layers} layers, hidden {model.hidden_size}, feed-forward {model.ffn_hidden_size}, "
        f"{model.num_attention_heads} heads in {model.num_query_groups} groups, vocabulary {model.vocab_size:,}",
        "iteration": f"{manifest.state.iteration:,}",
        "tokens seen": f"{sequences * seq_length:,} ({sequences:,} sequences of {seq_length:,})",
        "checked": "logits were not compared (--no-verify)"
        if parity is None
        else f"logits equal the training model's in fp32 to {parity.largest_difference:.1e} (bound {parity.bound:.1e})",
    }
    return TEXT.format(
        family=families.of_model(model).model_type,
        end=end,
        rows="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
    )
