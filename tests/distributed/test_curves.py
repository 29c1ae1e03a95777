"""Every mode has the loss curve of Hugging Face's model under torch's AdamW, to the last digits of fp32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import transformers

from tests.conftest import VOCABULARY
from tests.distributed.conftest import MODES, RECIPE, Job, Mode
from tinyllama_mcore.config.schema import DataConfig, ModelConfig, OptimizerConfig
from tinyllama_mcore.data.blend import open_blend
from tinyllama_mcore.data.receipt import vocabulary_of
from tinyllama_mcore.hf import names
from tinyllama_mcore.model.initialize import initial_value
from tinyllama_mcore.model.parameters import logical_parameters
from tinyllama_mcore.optim.schedule import learning_rate

MODEL = ModelConfig(**{**RECIPE["model"], "vocab_size": VOCABULARY})
BATCH = RECIPE["batch"]
SEED = 1234


def reference_model() -> transformers.LlamaForCausalLM:
    """Hugging Face's own model with the weights that every run starts from."""
    config = transformers.LlamaConfig(
        hidden_size=MODEL.hidden_size,
        intermediate_size=MODEL.ffn_hidden_size,
        num_hidden_layers=MODEL.num_layers,
        num_attention_heads=MODEL.num_attention_heads,
        num_key_value_heads=MODEL.num_query_groups,
        vocab_size=VOCABULARY,
        max_position_embeddings=MODEL.max_position_embeddings,
        rms_norm_eps=MODEL.norm_epsilon,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).float()
    weights = {}
    for parameter in logical_parameters(MODEL):
        weights |= names.to_hf(parameter.name, initial_value(parameter, MODEL, SEED), MODEL)
    model.load_state_dict(weights, strict=True)
    return model


@pytest.fixture(scope="session")
def reference(corpus: list[str]) -> list[tuple[float, float]]:
    """(loss, gradient norm before clipping) of each iteration of a plain loop: no Megatron, no DeepSpeed."""
    blend = tuple((float(w), p) for w, p in zip(corpus[::2], corpus[1::2], strict=True))
    vocabulary = vocabulary_of([p for _, p in blend], None)
    samples = open_blend(
        DataConfig(blend=blend), split="train", seq_length=BATCH["seq_length"], seed=SEED, vocabulary=vocabulary
    )
    samples.prepare(0, BATCH["train_iters"] * BATCH["global_batch_size"], builds=True, barrier=lambda: None)
    settings = OptimizerConfig(**RECIPE["optimizer"])
    model, curve = reference_model(), []
    adamw = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for iteration in range(BATCH["train_iters"]):
        start = iteration * BATCH["global_batch_size"]
        batch = [samples[i] for i in range(start, start + BATCH["global_batch_size"])]
        logits = model(torch.stack([s.tokens for s in batch])).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.cat([s.labels for s in batch]))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(iteration, settings, BATCH["train_iters"])
        adamw.step()
        adamw.zero_grad()
        curve.append((float(loss), float(norm)))
    return curve


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_curve_is_that_of_hugging_face(
    mode: Mode, reference: list[tuple[float, float]], job_of: Callable[[Mode], Job]
) -> None:
    """Losses within 2e-6 and gradient norms within 1e-5 relative, clipping active, over 20 iterations."""
    records = job_of(mode).metrics
    assert [r["iteration"] for r in records] == list(range(1, BATCH["train_iters"] + 1))
    assert max(norm for _, norm in reference) > RECIPE["optimizer"]["clip_grad"], "clipping must be at work"
    for record, (loss, norm) in zip(records, reference, strict=True):
        assert abs(record["lm_loss"] - loss) <= 2e-6, record["iteration"]
        assert abs(record["grad_norm"] - norm) <= 1e-5 * norm, record["iteration"]


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_bf16_stays_in_the_noise(
    zero: int, reference: list[tuple[float, float]], job_of: Callable[[Mode], Job]
) -> None:
    """bf16 compute with fp32 masters follows the fp32 curve; a gradient scale that is off by 2 % would not."""
    records = job_of(Mode(zero=zero, precision="bf16")).metrics
    assert max(abs(r["lm_loss"] - loss) for r, (loss, _) in zip(records, reference, strict=True)) < 5e-3
    assert abs(records[0]["grad_norm"] / reference[0][1] - 1) < 0.01


def test_consumption_is_counted_by_dataset(job_of: Callable[[Mode], Job], corpus: list[str]) -> None:
    """The checkpoint says how many sequences of each dataset were seen; they add up."""
    from tinyllama_mcore.checkpoint import layout, manifest

    job = job_of(MODES[0])
    state = manifest.read(layout.find(job.save)).state
    assert dataclasses.asdict(state)["consumed_samples"] == sum(state.consumed_by_dataset.values()) == 160
    assert set(state.consumed_by_dataset) == {corpus[1], corpus[3]}
