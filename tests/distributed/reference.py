"""The reference of every curve: Hugging Face's Llama under torch's AdamW. No Megatron, no DeepSpeed.

Nothing in it is ours but the initial weights, the order of samples and the learning rate: each has its own test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import transformers

from tests.conftest import VOCABULARY
from tests.distributed.recipe import BATCH, RECIPE
from tinyllama_mcore.config.parameters import LogicalParameter, logical_parameters
from tinyllama_mcore.config.schema import DataConfig, ModelConfig, OptimizerConfig
from tinyllama_mcore.data.receipt import vocabulary_of
from tinyllama_mcore.hf import names
from tinyllama_mcore.hf.config import rope_parameters
from tinyllama_mcore.model.initialize import initial_value
from tinyllama_mcore.optim.schedule import learning_rate
from tinyllama_mcore.sampling.blend import open_blend

MODEL = ModelConfig(**{**RECIPE["model"], "vocab_size": VOCABULARY})
SEED = 1234
END = 2
"""Id that ends a document in the small corpus."""
Forward = Callable[[transformers.PreTrainedModel, torch.Tensor], torch.Tensor]
Curve = list[tuple[float, float]]
"""(loss, gradient norm before clipping) of each iteration."""


CLASSES = {
    (False, False): (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    (True, False): (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    (False, True): (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
"""(biases of queries, keys and values, norms of queries and keys) -> what Hugging Face calls such a model."""


def reference_model(
    shape: ModelConfig, value: Callable[[LogicalParameter, ModelConfig, int], torch.Tensor] = initial_value
) -> transformers.PreTrainedModel:
    """Hugging Face's own model with the weights that a run of this shape starts from, or those that `value` gives."""
    config_of, model_of = CLASSES[shape.add_qkv_bias, shape.qk_layernorm]
    config = config_of(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_query_groups,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        rms_norm_eps=shape.norm_epsilon,
        rope_parameters=rope_parameters(shape),
        head_dim=shape.head_dim,
        tie_word_embeddings=not shape.untie_embeddings_and_output_weights,
        attn_implementation="eager",
    )
    model = model_of(config).float()
    weights = {}
    for parameter in logical_parameters(shape):
        weights |= names.to_hf(parameter.name, value(parameter, shape, SEED), shape)
    missing = model.load_state_dict(weights, strict=False)
    tied = [] if shape.untie_embeddings_and_output_weights else ["lm_head.weight"]
    assert (missing.missing_keys, missing.unexpected_keys) == (tied, [])
    return model


def whole_samples(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [b s, v] of samples [b, s]."""
    return model(tokens).logits.flatten(0, 1)


def each_document_alone(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [b s, v] of samples [b, s], every document of each in a forward pass of its own."""
    pieces: list[torch.Tensor] = []
    for sample in tokens:
        ends = [end + 1 for end in (sample == END).nonzero().flatten().tolist() if end + 1 < len(sample)]
        pieces += torch.tensor_split(sample, ends)
    return torch.cat([whole_samples(model, piece[None]) for piece in pieces])


def full_batch(first_sample: int) -> range:
    """The samples of an iteration of the recipe's batch, by the first of them."""
    return range(first_sample, first_sample + BATCH["global_batch_size"])


def reference_curve(*given: Any, end: int = BATCH["train_iters"], **named: Any) -> Curve:  # noqa: ANN401
    """The first iterations of `reference_steps`, up to `end`, under the schedule of a whole run."""
    return list(itertools.islice(reference_steps(*given, **named), end))


def reference_steps(
    corpus: list[str],
    forward: Forward = whole_samples,
    skipped: Collection[int] = (),
    samples_of: Callable[[int], range] = lambda iteration: full_batch(iteration * BATCH["global_batch_size"]),
    model: transformers.PreTrainedModel | None = None,
    on_gradient: Callable[[int], None] = lambda iteration: None,
    eps: float = 1e-8,
) -> Iterator[tuple[float, float]]:
    """Each iteration of the curve of a plain loop, which leaves out updates `skipped`.

    Iterations are counted from 0; `samples_of` says which of the order of samples each takes. `model` is trained in
    place of the one that a run starts from; `on_gradient` is called in each iteration before gradients are clipped.
    `eps` is AdamW's.
    """
    blend = tuple((float(w), p) for w, p in zip(corpus[::2], corpus[1::2], strict=True))
    vocabulary = vocabulary_of([p for _, p in blend], None)
    samples = open_blend(
        DataConfig(blend=blend), split="train", seq_length=BATCH["seq_length"], seed=SEED, vocabulary=vocabulary
    )
    samples.prepare(0, samples_of(BATCH["train_iters"] - 1).stop)
    settings = OptimizerConfig(**RECIPE["optimizer"])
    model = model or reference_model(MODEL)
    adamw = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), eps=eps, weight_decay=0.1)
    for iteration in range(BATCH["train_iters"]):
        batch = [samples[i] for i in samples_of(iteration)]
        logits = forward(model, torch.stack([sample.tokens for sample in batch]))
        loss = torch.nn.functional.cross_entropy(logits, torch.cat([s.labels for s in batch]))
        loss.backward()
        on_gradient(iteration)
        squares = [parameter.grad.double().square().sum() for parameter in model.parameters()]
        norm = torch.stack(squares).sum().sqrt()  # torch's own is wrong on a CPU: findings/torch_cpu_norm_...
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), settings.clip_grad, norm.float())
        for group in adamw.param_groups:
            group["lr"] = learning_rate(iteration, settings, BATCH["train_iters"])
        if iteration not in skipped:
            adamw.step()
        adamw.zero_grad()
        yield float(loss), float(norm)
