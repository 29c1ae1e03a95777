"""Checkpoints that a plain DeepSpeed engine saves of a Hugging Face Llama are read bit for bit, and run nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.distributed import ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tests.distributed.recipe import BATCH, RECIPE
from tests.distributed.reference import MODEL, SEED, reference_model
from tests.distributed.variants import recipe_of, shape_of
from tests.test_hostile_files import Hostile
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.parameters import logical_parameters
from tinyllama_mcore.config.schema import DataConfig, OptimizerConfig
from tinyllama_mcore.data.receipt import vocabulary_of
from tinyllama_mcore.hf import deepspeed_native, names
from tinyllama_mcore.hf.importing import import_hf
from tinyllama_mcore.optim.schedule import learning_rate
from tinyllama_mcore.sampling.blend import open_blend

KINDS = ("model", "exp_avg", "exp_avg_sq")
CONTINUED = 3
"""Iterations after the move."""
MOVED = {0: "qwen-2.5", 1: "", 2: "qwen-3", 3: "llama-3.2"}
"""Stage -> the variant that moves in from it; "": TinyLlama's small one. A tied matrix has two names in stage 0."""


def _engine(stage: int, llama: LlamaForCausalLM, adam: torch.optim.AdamW, **config: object) -> Any:  # noqa: ANN401
    """A plain DeepSpeed engine, as its own examples make it."""
    import deepspeed

    from tinyllama_mcore.engine.deepspeed_engine import _skip_inference_kernels

    _skip_inference_kernels()
    deepspeed.init_distributed("gloo")
    config |= {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    engine, *_ = deepspeed.initialize(model=llama, optimizer=adam, config=config)
    return engine


def _train(stage: int, model: Path, out: Path) -> int:
    """Two updates in bf16, norms in a group of their own; all state, as DeepSpeed itself gathers it, in full.pt."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    llama = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    matrices = [p for p in llama.parameters() if p.ndim == 2]
    norms = [p for p in llama.parameters() if p.ndim == 1]
    adam = torch.optim.AdamW([{"params": norms, "weight_decay": 0.0}, {"params": matrices}], lr=1e-2)
    engine = _engine(stage, llama, adam, train_micro_batch_size_per_gpu=1, bf16={"enabled": True})
    torch.manual_seed(torch.distributed.get_rank())
    for _ in range(2):
        tokens = torch.randint(800, (1, 16))
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
    engine.save_checkpoint(str(out))
    if stage < 3:  # DeepSpeed 0.19.8 links moments for its readers when the first of several groups has any
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    named = dict(engine.module.named_parameters())
    full = {"model": {name: safe_get_full_fp32_param(p).cpu().clone() for name, p in named.items()}}
    for kind in KINDS[1:]:
        full[kind] = {name: safe_get_full_optimizer_state(p, kind).cpu().clone() for name, p in named.items()}
    if torch.distributed.get_rank() == 0:
        torch.save(full, out / "full.pt")
    torch.distributed.barrier()
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_element_bit_for_bit(stage: int, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Matrices that three ranks cannot cut evenly; into our checkpoint. Then a hostile file among the others."""
    source = make_llama()
    saved = tmp_path / "saved"
    codes = ranks.run(3, _train, stage, source, saved, logs=tmp_path / "logs")
    assert codes == [0, 0, 0], (tmp_path / "logs" / "rank0.log").read_text()[-2000:]
    full = torch.load(saved / "full.pt", weights_only=True)
    found = deepspeed_native.read(saved)
    assert {kind: tensors.names() for kind, tensors in found.tensors.items()} == {k: frozenset(full[k]) for k in KINDS}
    imported = import_hf(source, tmp_path / "run", found)
    reader = CheckpointReader(imported.checkpoint)
    assert (imported.updates, reader.manifest.state.updates, reader.manifest.kinds) == (2, 2, KINDS)
    for kind in KINDS:
        for parameter in logical_parameters(imported.model):
            expected = names.from_hf(parameter.name, full[kind].__getitem__, imported.model)
            assert torch.equal(reader.tensor(f"{kind}.{parameter.name}"), expected), (kind, parameter.name)
    proof = tmp_path / "it ran"
    victim = sorted(saved.glob("global_step*/*optim_states.pt"))[0]
    torch.save({"optimizer_state_dict": Hostile(proof)}, victim)
    with pytest.raises(ConfigError, match="cannot be read as data"):
        deepspeed_native.read(saved)
    assert not proof.exists()
    os.unlink(victim)
    with pytest.raises(ConfigError, match="2 of 3 optimizer files"):
        deepspeed_native.read(saved)
    for path in victim.parent.glob("*optim_states.pt"):
        path.unlink()
    with pytest.raises(ConfigError, match="another precision than fp32"):
        deepspeed_native.read(saved)
    shutil.rmtree(victim.parent)
    with pytest.raises(ConfigError, match="no DeepSpeed checkpoint"):
        deepspeed_native.read(saved)


def _begin_and_go_on(stage: int, corpus: list[str], out: Path) -> int:
    """Three updates on other tokens, saved; then `CONTINUED` on the corpus, their losses in losses.json."""
    llama = reference_model(shape_of(MOVED[stage]) if MOVED[stage] else MODEL)
    if int(os.environ["RANK"]) == 0:
        llama.save_pretrained(out / "hf")
    settings = OptimizerConfig(**RECIPE["optimizer"])
    adam = torch.optim.AdamW(llama.parameters(), lr=settings.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    each = BATCH["global_batch_size"] // 2
    engine = _engine(stage, llama, adam, train_micro_batch_size_per_gpu=each, gradient_clipping=settings.clip_grad)
    rank = torch.distributed.get_rank()

    def step(tokens: torch.Tensor, labels: torch.Tensor) -> float:
        logits = engine(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        torch.distributed.all_reduce(mean)
        return mean.item() / 2

    drawn = torch.Generator().manual_seed(rank)
    for _ in range(3):
        tokens = torch.randint(MODEL.vocab_size, (each, BATCH["seq_length"] + 1), generator=drawn)
        step(tokens[:, :-1], tokens[:, 1:])
    engine.save_checkpoint(str(out / "saved"))
    blend = tuple((float(w), p) for w, p in zip(corpus[::2], corpus[1::2], strict=True))
    vocabulary = vocabulary_of([p for _, p in blend], None)
    data = DataConfig(blend=blend)
    samples = open_blend(data, split="train", seq_length=BATCH["seq_length"], seed=SEED, vocabulary=vocabulary)
    if rank == 0:
        samples.prepare(0, CONTINUED * 2 * each)
    torch.distributed.barrier()
    losses = []
    for iteration in range(CONTINUED):
        for group in adam.param_groups:
            group["lr"] = learning_rate(iteration, settings, BATCH["train_iters"])
        first = iteration * 2 * each + rank * each
        batch = [samples[i] for i in range(first, first + each)]
        losses.append(step(torch.stack([s.tokens for s in batch]), torch.stack([s.labels for s in batch])))
    if rank == 0:
        (out / "losses.json").write_text(json.dumps(losses))
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_that_moved_in_goes_on(stage: int, corpus: list[str], tmp_path: Path) -> None:
    """Its next losses in fp32 are those of the DeepSpeed run that went on where it was, moments and all."""
    codes = ranks.run(2, _begin_and_go_on, stage, corpus, tmp_path, logs=tmp_path / "logs")
    assert codes == [0, 0], (tmp_path / "logs" / "rank0.log").read_text()[-2000:]
    imported = import_hf(tmp_path / "hf", tmp_path / "run", deepspeed_native.read(tmp_path / "saved"))
    assert imported.updates == 3
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), "--load", str(tmp_path / "run")]
    if MOVED[stage]:
        (tmp_path / "recipe.json").write_text(json.dumps(recipe_of(MOVED[stage])))
    argv += ["--exit-interval", str(CONTINUED), "--metrics-file", str(tmp_path / "metrics.jsonl")]
    ranks.pretrain(argv, world_size=2, logs=tmp_path / "logs")
    losses = [record["lm_loss"] for record in ranks.metrics(tmp_path / "metrics.jsonl")]
    assert losses == pytest.approx(json.loads((tmp_path / "losses.json").read_text()), abs=2e-6, rel=0)
