"""Bytes that a forward pass keeps for its backward pass, tensor by tensor.

Fused layers are read in model/fused.py and fused_model.py; local ones in Megatron-core 0.16.1 and 0.19.2
(transformer_layer.py, attention.py, mlp.py, cross_entropy.py) and in torch's autograd. What real layers keep is
counted in tests/planning/test_activations.py, which finds these numbers to the byte.
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
    if run.layout.recompute_granularity != "full":
        return working_set(run)
    return {"layer input": hidden_states(run)}  # model/fused.py; tensor_parallel.checkpoint, transformer_block.py


def working_set(run: RunConfig) -> dict[str, int]:
    """Tensor -> bytes that one decoder layer keeps where it is not recomputed as a whole."""
    here, e = tokens(run), element_size(run)
    ffn = run.model.ffn_hidden_size // run.layout.tensor_model_parallel_size
    kept = {
        "norm inputs": 2 * hidden_states(run),  # [s, b, h] before each of the two norms
        "norm statistics": 2 * tokens_between_regions(run) * FP32,  # 1 / rms of each token
        "gate and up": here * 2 * ffn * e,  # linear_fc1's output
    }
    if run.model.qk_layernorm:
        kept |= _head_norms(run)
    if run.transformer_impl == "fused":  # outputs of norms and of SwiGLU are made again
        return kept | _fused_attention(run)
    return kept | {
        "linear inputs": 2 * hidden_states(run),  # [s, b, h] that linear_qkv and linear_fc1 multiply
        **_local_attention(run),
        "product": here * ffn * e,  # silu(gate) * up, which linear_fc2 multiplies
    }


def heads(run: RunConfig) -> tuple[int, int]:
    """Channels of the queries, and of the keys (or values), on one tensor-parallel rank: n d/tp and g d/tp."""
    m, tp = run.model, run.layout.tensor_model_parallel_size
    return m.num_attention_heads * m.head_dim // tp, m.num_query_groups * m.head_dim // tp


def _head_norms(run: RunConfig) -> dict[str, int]:
    """Tensor -> bytes that norms of queries and keys keep: what they took, and 1 / rms of each head, fused values' too.

    Of local layers the keys are a view of linear_qkv's output, which stays; `_local_attention` counts it for the value,
    but not under context parallelism.
    """
    (query, key), here, e, m = heads(run), tokens(run), element_size(run), run.model
    tp = run.layout.tensor_model_parallel_size
    if run.transformer_impl == "fused":
        slots = (m.num_attention_heads + 2 * m.num_query_groups) // tp
        return {"heads before their norms": here * (query + 2 * key) * e, "scales of heads": here * slots * FP32}
    copied = here * query * e if m.num_query_groups > tp else 0
    if run.layout.context_parallel_size > 1:
        copied += here * (query + 2 * key) * e
    slots = (m.num_attention_heads + m.num_query_groups) // tp
    return {"heads before their norms": copied, "scales of heads": here * slots * FP32}


def _fused_attention(run: RunConfig) -> dict[str, int]:
    """Tensor -> bytes that a fused layer keeps of the core attention."""
    (query, key), cp = heads(run), run.layout.context_parallel_size
    here, e = tokens(run), element_size(run)
    kept = {"query": here * query * e, "key and value": 2 * here * key * e, "context": here * query * e}
    if cp > 1:  # beside this rank's own: gathered whole, and the outputs of two chunks before they are joined
        kept |= {"keys and values": here * cp * 2 * key * e, "context": 2 * here * query * e}
    return kept | _kernel(run)


def _local_attention(run: RunConfig) -> dict[str, int]:
    """Tensor -> bytes that the core attention and linear_proj keep (model/local.py, model/context.py)."""
    m, tp, cp = run.model, run.layout.tensor_model_parallel_size, run.layout.context_parallel_size
    (query, key), here, e = heads(run), tokens(run), element_size(run)
    qkv, context = here * (query + 2 * key) * e, here * query * e  # outputs of linear_qkv and of the core attention
    if run.layout.recompute_granularity == "selective":  # the core attention's inputs: queries are a copy if g/tp > 1
        copied = m.num_query_groups > tp or m.qk_layernorm
        normed_key = here * key * e if m.qk_layernorm else 0
        return {"qkv": qkv, "query": here * query * e if copied else 0, "key": normed_key, "context": context}
    kept = {"query": here * query * e}  # [s, b, n/tp, d] after RoPE
    if cp == 1:  # the value is a view, so that all of linear_qkv's output stays
        kept |= {"key": here * key * e, "value": qkv, "context": context}
    else:
        kept |= {
            "keys and values": here * cp * 2 * key * e,  # gathered whole
            "context": 2 * context,  # outputs of two chunks, and the tensor they are joined in
            "rotary tables": m.head_dim * e * run.batch.seq_length // cp,  # cos and sin of this rank's positions
        }
    return kept | _kernel(run)


def _kernel(run: RunConfig) -> dict[str, int]:
    """Tensor -> bytes that the attention kernel itself keeps."""
    rows = tokens(run) * run.model.num_attention_heads // run.layout.tensor_model_parallel_size
    kept = {"logsumexp": rows * FP32}
    if run.attention_backend == "unfused":  # torch's math kernel keeps the probabilities, in fp32
        kept["attention matrix"] = rows * run.batch.seq_length * FP32
    return kept


def backward_scratch(run: RunConfig) -> int:
    """Bytes that the backward pass of one layer needs beside what was saved for it.

    Beside all that was saved stand, of local layers, the gradients of gate and up (model/local.py), of fused ones
    SwiGLU's output and its gradient; and the incoming gradient, whole along the sequence inside the tensor-parallel
    region.
    """
    ffn = run.model.ffn_hidden_size // run.layout.tensor_model_parallel_size
    recomputed = sum(working_set(run).values()) if run.layout.recompute_granularity == "full" else 0
    return recomputed + tokens(run) * element_size(run) * (2 * ffn + run.model.hidden_size)


def saved_by_head(run: RunConfig) -> int:
    """Bytes kept by the final norm and the head for one micro-batch, logits aside; fused, with each token's loss."""
    loss = tokens(run) * FP32 if run.transformer_impl == "fused" else 0
    return 2 * hidden_states(run) + tokens_between_regions(run) * FP32 + loss


def logits(run: RunConfig) -> int:
    """Bytes of the logits [s, b, v/tp] and their copies at the worst moment of the loss.

    Fused: one copy, which becomes its gradient in place; beside it what the last layer left to add, or then the
    gradient of the head's input. Local, forward: the head's output beside its fp32 copy, which becomes the softmax in
    place; backward: that softmax, which becomes the gradient in place, beside the gradient in the head's precision
    (_VocabParallelCrossEntropy). Local padding rows are masked in a copy. Under sequence parallelism the head's input
    is gathered along the sequence.
    """
    tp, e = run.layout.tensor_model_parallel_size, element_size(run)
    whole = tokens(run) * run.model.hidden_size * e
    if run.transformer_impl == "fused":
        gathered = hidden_states(run) if run.layout.sequence_parallel else 0
        return tokens(run) * (run.padded_vocab_size // tp) * e + whole + gathered
    copies = FP32 if e == FP32 else e + FP32
    if run.padded_vocab_size != run.model.vocab_size:
        copies += e
    gathered = whole if run.layout.sequence_parallel else 0
    return tokens(run) * (run.padded_vocab_size // tp * copies) + gathered
