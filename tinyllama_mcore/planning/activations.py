"""Bytes that a forward pass keeps for its backward pass, tensor by tensor.

Read in Megatron-core 0.16.1 and 0.19.2 (transformer_layer.py, attention.py, mlp.py, cross_entropy.py) and in torch's
autograd; tests/planning/test_activations.py counts what the real layer saves and finds these numbers to the byte.
Neighbours: `rank` says for how many micro-batches, `memory` adds the rest. Shapes: s sequence, b micro-batch, h hidden,
n query heads, g query groups, d head dim, f ffn, v padded vocabulary; a rank has s/cp of each sequence.
"""

from __future__ import annotations

from tinyllama_mcore.config.schema import RunConfig

FP32 = 4
"""Bytes of an element."""


def element_size(run: RunConfig) -> int:
    """Bytes of an element of the forward pass."""
    return 2 if run.sharding.precision == "bf16" else FP32


def reduced_size(run: RunConfig) -> int:
    """Bytes of an element of a gradient while DeepSpeed reduces it: communication_data_type, else as the weights."""
    named = run.sharding.deepspeed.get("communication_data_type")
    return element_size(run) if named is None else {"fp32": FP32, "bf16": 2}[named]


def tokens(run: RunConfig) -> int:
    """Tokens of a micro-batch that one rank works on: b x s/cp."""
    return run.batch.micro_batch_size * run.batch.seq_length // run.layout.context_parallel_size


def tokens_between_regions(run: RunConfig) -> int:
    """The same between the tensor-parallel regions, where sequence parallelism cuts again."""
    return tokens(run) // (run.layout.tensor_model_parallel_size if run.layout.sequence_parallel else 1)


def hidden_states(run: RunConfig) -> int:
    """Bytes of the residual stream of one micro-batch: what a layer takes and gives, and a pipeline rank sends."""
    return tokens_between_regions(run) * run.model.hidden_size * element_size(run)


def saved_by_layer(run: RunConfig) -> dict[str, int]:
    """Tensor -> bytes that one decoder layer keeps for one micro-batch, computed on a GPU."""
    if run.layout.recompute_granularity == "full":
        return {"layer input": hidden_states(run)}  # tensor_parallel.checkpoint, transformer_block.py
    return working_set(run)


def working_set(run: RunConfig) -> dict[str, int]:
    """Tensor -> bytes that one decoder layer keeps where it is not recomputed as a whole."""
    here, between, e = tokens(run), tokens_between_regions(run), element_size(run)
    ffn = run.model.ffn_hidden_size // run.layout.tensor_model_parallel_size
    return {
        "norm inputs": 2 * hidden_states(run),  # [s, b, h] before input_layernorm and before pre_mlp_layernorm
        "norm statistics": 2 * between * FP32,  # 1 / rms of each token
        "linear inputs": 2 * hidden_states(run),  # [s, b, h] that linear_qkv and linear_fc1 multiply
        **_attention(run),
        "gate and up": here * 2 * ffn * e,  # linear_fc1's output
        "product": here * ffn * e,  # silu(gate) * up, which linear_fc2 multiplies
    }


def _attention(run: RunConfig) -> dict[str, int]:
    """Tensor -> bytes that the core attention and linear_proj keep (model/attention.py, model/context.py)."""
    m, tp, cp = run.model, run.layout.tensor_model_parallel_size, run.layout.context_parallel_size
    here, e = tokens(run), element_size(run)
    query, key = m.num_attention_heads * m.kv_channels // tp, m.num_query_groups * m.kv_channels // tp
    qkv, context = here * (query + 2 * key) * e, here * query * e  # outputs of linear_qkv and of the core attention
    if run.layout.recompute_granularity == "selective":  # the core attention's inputs: queries are a copy if g/tp > 1
        return {"qkv": qkv, "query": here * query * e if m.num_query_groups > tp else 0, "context": context}
    kept = {"query": here * query * e}  # [s, b, n/tp, d] after RoPE
    if cp == 1:  # the value is a view, so that all of linear_qkv's output stays
        kept |= {"key": here * key * e, "value": qkv, "context": context}
    else:
        kept |= {
            "keys and values": here * cp * 2 * key * e,  # gathered whole
            "context": 2 * context,  # outputs of two chunks, and the tensor they are joined in
            "rotary tables": m.kv_channels * e * run.batch.seq_length // cp,  # cos and sin of this rank's positions
        }
    heads = here * m.num_attention_heads // tp
    kept["logsumexp"] = heads * FP32
    if run.attention_backend == "unfused":  # torch's math kernel keeps the probabilities, in fp32
        kept["attention matrix"] = heads * run.batch.seq_length * FP32
    return kept


def backward_scratch(run: RunConfig) -> int:
    """Bytes that the backward pass of one layer needs beside what was saved for it.

    The gradients of gate and up stand beside all that they are made from (model/swiglu.py), and the incoming gradient,
    whole along the sequence inside the tensor-parallel region.
    """
    ffn = run.model.ffn_hidden_size // run.layout.tensor_model_parallel_size
    recomputed = sum(working_set(run).values()) if run.layout.recompute_granularity == "full" else 0
    return recomputed + tokens(run) * element_size(run) * (2 * ffn + run.model.hidden_size)


def saved_by_head(run: RunConfig) -> int:
    """Bytes kept by the final norm and the head for one micro-batch, logits aside."""
    return 2 * hidden_states(run) + tokens_between_regions(run) * FP32


def logits(run: RunConfig) -> int:
    """Bytes of the logits [s, b, v/tp] and their copies at the worst moment of the loss.

    Forward: the head's output beside its fp32 copy, which becomes the softmax in place. Backward: that softmax, which
    becomes the gradient in place, beside the gradient in the head's precision (_VocabParallelCrossEntropy). Padding
    rows are masked in a copy. Under sequence parallelism the head's input is gathered along the sequence.
    """
    tp, e = run.layout.tensor_model_parallel_size, element_size(run)
    copies = FP32 if e == FP32 else e + FP32
    if run.padded_vocab_size != run.model.vocab_size:
        copies += e
    gathered = run.model.hidden_size * e if run.layout.sequence_parallel else 0
    return tokens(run) * (run.padded_vocab_size // tp * copies + gathered)
