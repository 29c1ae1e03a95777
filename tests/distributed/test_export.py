"""From any mode's checkpoint to a Hugging Face model with the training model's own logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from tests.distributed.conftest import Job
from tests.distributed.layouts import BF16_MODES, STATE_MODES, Mode
from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.hf.export import ExportJob, export


@pytest.mark.parametrize("mode", [*STATE_MODES, *BF16_MODES[:4]], ids=str)
def test_every_mode_exports(mode: Mode, job_of: Callable[[Mode], Job], corpus_tokenizer: Path, tmp_path: Path) -> None:
    """Logits within the model's own rounding of the training model's, every parameter there, no padded vocabulary.

    The run was given no tokenizer: it took the one that its data's receipts name, and so does the export.
    """
    job = job_of(mode)
    done = export(ExportJob(load=job.save, output=tmp_path / "hf", dtype="fp32"))
    assert (tmp_path / "hf/tokenizer.model").read_bytes() == corpus_tokenizer.read_bytes()
    assert done.parity is not None
    assert done.replay is not None
    assert done.replay.precision == mode.precision
    assert 0 < done.replay.deviation <= done.replay.bound < {"fp32": 1e-5, "bf16": 0.05}[mode.precision]
    assert done.parity.largest_difference <= done.parity.bound < 1e-5
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert done.parameters == model.num_parameters()
    embedding = CheckpointReader(layout.find(job.save)).tensor("model.embedding.word_embeddings.weight")
    assert torch.equal(model.get_input_embeddings().weight, embedding)
