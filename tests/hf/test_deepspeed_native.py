"""Checkpoints that a plain DeepSpeed engine saves of a Hugging Face Llama are read bit for bit, and run nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.distributed import ranks
from tests.test_hostile_files import Hostile
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config.schema import ConfigError
from tinyllama_mcore.hf import names
from tinyllama_mcore.hf.deepspeed_native import DeepSpeedWeights
from tinyllama_mcore.hf.importing import import_hf
from tinyllama_mcore.model.parameters import logical_parameters


def _train(stage: int, model: Path, out: Path) -> int:
    """Two updates in bf16 by other people's code; its fp32 weights, as DeepSpeed itself gathers them, in full.pt."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    from tinyllama_mcore.engine.deepspeed_engine import _skip_inference_kernels

    _skip_inference_kernels()
    deepspeed.init_distributed("gloo")
    llama = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    adam = torch.optim.AdamW(llama.parameters(), lr=1e-2)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=llama, optimizer=adam, config=config)
    torch.manual_seed(torch.distributed.get_rank())
    for _ in range(2):
        tokens = torch.randint(800, (1, 16))
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
    engine.save_checkpoint(str(out))
    full = {name: safe_get_full_fp32_param(p).cpu().clone() for name, p in engine.module.named_parameters()}
    if torch.distributed.get_rank() == 0:
        torch.save(full, out / "full.pt")
    torch.distributed.barrier()
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_weight_bit_for_bit(stage: int, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Matrices that three ranks cannot cut evenly; into our checkpoint. Then a hostile file among the others."""
    source = make_llama()
    saved = tmp_path / "saved"
    codes = ranks.run(3, _train, stage, source, saved, logs=tmp_path / "logs")
    assert codes == [0, 0, 0], (tmp_path / "logs" / "rank0.log").read_text()[-2000:]
    full = torch.load(saved / "full.pt", weights_only=True)
    weights = DeepSpeedWeights(saved)
    assert weights.names() == frozenset(full)
    imported = import_hf(source, tmp_path / "run", weights)
    reader = CheckpointReader(imported.checkpoint)
    for parameter in logical_parameters(imported.model):
        ours = reader.tensor(f"model.{parameter.name}")
        assert torch.equal(ours, names.from_hf(parameter.name, full.__getitem__, imported.model)), parameter.name
    proof = tmp_path / "it ran"
    victim = sorted(saved.glob("global_step*/*optim_states.pt"))[0]
    torch.save({"optimizer_state_dict": Hostile(proof)}, victim)
    with pytest.raises(ConfigError, match="cannot be read as data"):
        DeepSpeedWeights(saved)
    assert not proof.exists()
    os.unlink(victim)
    with pytest.raises(ConfigError, match="2 of 3 optimizer files"):
        DeepSpeedWeights(saved)
    shutil.rmtree(victim.parent)
    with pytest.raises(ConfigError, match="no ZeRO checkpoint"):
        DeepSpeedWeights(saved)
