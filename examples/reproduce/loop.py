"""An independent loop: Hugging Face's LlamaForCausalLM under torch's AdamW, on one device. No Megatron, no DeepSpeed.

    python -m examples.reproduce.loop --recipe tinyllama-debug --train-iters 60 --metrics-file FILE --data-path W P ...

Ours are only the initial weights, the order of samples and the learning rate, without which curves cannot be compared.
A loop that is stopped begins again. Neighbours: tests/distributed/reference.py is the loop that layouts are tested by.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from tinyllama_mcore.config import recipes
from tinyllama_mcore.config.data_config import DataConfig
from tinyllama_mcore.config.parameters import logical_parameters
from tinyllama_mcore.config.schema import ModelConfig
from tinyllama_mcore.data.receipt import vocabulary_of
from tinyllama_mcore.hf import names
from tinyllama_mcore.hf.config import to_hf_config
from tinyllama_mcore.model.initialize import initial_value
from tinyllama_mcore.optim.schedule import learning_rate
from tinyllama_mcore.sampling.blend import BlendedSamples, open_blend

SEED = 1234
"""The trainer's default."""


def fresh_model(shape: ModelConfig) -> transformers.PreTrainedModel:
    """Hugging Face's model in fp32 with the weights that a run of this shape starts from."""
    said = to_hf_config(shape, dtype="fp32", roles={})
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**said)).float()
    weights: dict[str, torch.Tensor] = {}
    for parameter in logical_parameters(shape):
        weights |= names.to_hf(parameter.name, initial_value(parameter, shape, SEED), shape)
    model.load_state_dict(weights)
    return model


def losses(recipe: recipes.Recipe, samples: BlendedSamples, train_iters: int) -> Iterator[float]:
    """Train, and yield the mean loss of each global batch in nats a token."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)  # as each rank of the trainer has; more of them wait for each other on shared cores
    model: torch.nn.Module = fresh_model(recipe.model)
    model.to(device)
    if device == "cuda":
        model.compile()
    rules, batch = recipe.optimizer, recipe.batch
    adamw = torch.optim.AdamW(
        model.parameters(),
        betas=(rules.adam_beta1, rules.adam_beta2),
        eps=rules.adam_eps,
        weight_decay=rules.weight_decay,
    )
    bf16 = torch.autocast(device, torch.bfloat16) if recipe.precision == "bf16" else contextlib.nullcontext()
    for iteration in range(train_iters):
        first, total = iteration * batch.global_batch_size, 0.0
        for start in range(first, first + batch.global_batch_size, batch.micro_batch_size):
            drawn = [samples[i] for i in range(start, start + batch.micro_batch_size)]
            tokens = torch.stack([sample.tokens for sample in drawn]).to(device)  # [b, s]
            labels = torch.stack([sample.labels for sample in drawn]).to(device)  # [b, s]
            with bf16:
                logits = model(tokens).logits  # [b, s, v]
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
            loss = loss * batch.micro_batch_size / batch.global_batch_size
            loss.backward()
            total += float(loss.detach())
        squares = [weight.grad.double().square().sum() for weight in model.parameters() if weight.grad is not None]
        norm = torch.stack(squares).sum().sqrt().float()
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), rules.clip_grad, norm)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(iteration, rules, train_iters)
        adamw.step()
        adamw.zero_grad()
        yield total


def main() -> int:
    """Train as the flags say, and write a line an iteration."""
    parser = argparse.ArgumentParser(description="The same run by Hugging Face's model and torch's AdamW.")
    parser.add_argument("--recipe", required=True, help="name of a recipe")
    parser.add_argument("--train-iters", type=int, required=True, help="iterations")
    parser.add_argument("--lr-warmup-iters", type=int, required=True, help="iterations of linear warm-up")
    parser.add_argument("--metrics-file", type=Path, required=True, help="file for a JSON object an iteration")
    parser.add_argument("--data-path", nargs="+", required=True, help="weights and prefixes: W1 P1 W2 P2 ...")
    given = parser.parse_args()
    weights, prefixes = [float(word) for word in given.data_path[::2]], given.data_path[1::2]
    vocabulary = vocabulary_of(prefixes, None)
    recipe = recipes.load(given.recipe)
    recipe = replace(
        recipe,
        model=replace(recipe.model, vocab_size=recipe.model.vocab_size or vocabulary.vocab_size),
        optimizer=replace(recipe.optimizer, lr_warmup_iters=given.lr_warmup_iters),
    )
    batch = recipe.batch
    data = DataConfig(blend=tuple(zip(weights, prefixes, strict=True)), split=(1.0, 0.0, 0.0))
    samples = open_blend(data, split="train", seq_length=batch.seq_length, seed=SEED, vocabulary=vocabulary)
    assert samples is not None
    samples.prepare(0, given.train_iters * batch.global_batch_size)
    partial = given.metrics_file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for iteration, loss in enumerate(losses(recipe, samples, given.train_iters), 1):
            tokens = iteration * batch.global_batch_size * batch.seq_length
            line = {"iteration": iteration, "time": time.time(), "consumed_tokens": tokens, "lm_loss": loss}
            print(json.dumps(line), file=file, flush=True)
    partial.rename(given.metrics_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
