"""A checkpoint of litgpt comes over as docs/howto/migrate.md says: by litgpt's own converter, then by ours.

Needs litgpt, which nothing else of the tests does: `PYTHONPATH` may name a directory that pip installed it into.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from tests import shown
from tinyllama_mcore.commands import convert_from_hf

SHAPE = {
    "n_layer": 2,
    "n_head": 8,
    "n_query_groups": 4,
    "n_embd": 64,
    "intermediate_size": 96,
    "block_size": 128,
    "padded_vocab_size": 800,
}
"""A small model of the kind of tiny-llama-1.1b."""


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """What `litgpt pretrain` leaves: lit_model.pth and model_config.yaml; norms are random too."""
    lit = pytest.importorskip("litgpt")
    config = lit.Config.from_name("tiny-llama-1.1b", **SHAPE)
    model = lit.GPT(config)
    torch.manual_seed(5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    directory = tmp_path / "out"
    directory.mkdir()
    torch.save({"model": model.state_dict()}, directory / "lit_model.pth")
    (directory / "model_config.yaml").write_text(yaml.safe_dump(asdict(config)))
    return directory


def test_by_its_own_converter_and_ours(trained: Path, tmp_path: Path) -> None:
    """The page's own lines; transformers then computes litgpt's logits, and the import those of transformers."""
    from litgpt.model import GPT, Config

    converted = tmp_path / "hf/mine"
    shown_there = shown.commands("docs/howto/migrate.md")
    theirs, ours = (next(c for c in shown_there if c.startswith(begins)) for begins in ("litgpt ", "python -c"))
    for line in (theirs.replace("litgpt", "python -m litgpt", 1), ours):
        words = shlex.split(line.replace("out/pretrain/final", str(trained)))
        subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True)
    LlamaConfig(
        vocab_size=800,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(converted)
    (converted / "model.pth").unlink()
    assert convert_from_hf.main(["--input", str(converted), "--output", str(tmp_path / "run")]) == 0

    model = GPT(Config.from_file(trained / "model_config.yaml"))
    model.load_state_dict(torch.load(trained / "lit_model.pth", weights_only=True)["model"])
    tokens = torch.arange(128).reshape(2, 64) * 5 % 800
    with torch.no_grad():
        expected = model(tokens)
        found = LlamaForCausalLM.from_pretrained(converted, dtype=torch.float32)(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
