"""A checkpoint becomes a directory that transformers loads: exact, whole or not there, and refused in plain words."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tinyllama_mcore.checkpoint import manifest
from tinyllama_mcore.checkpoint.layout import find
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.parameters import logical_parameters
from tinyllama_mcore.hf import names
from tinyllama_mcore.hf.export import ExportJob, check_weights, export, model_of, plan_shards
from tinyllama_mcore.hf.importing import import_hf
from tinyllama_mcore.hf.parity import Mismatch
from tinyllama_mcore.sampling.sample_order import SampleOrder

REPOSITORY = Path(__file__).resolve().parents[2]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Every weight of the model in a directory, as transformers loads it in fp32."""
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_import_then_export_is_bit_equal(groups: int, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Out of transformers and back: one, some and all heads in a group, another RoPE base."""
    source = make_llama(num_key_value_heads=groups, rope_theta=50_000.0)
    imported = import_hf(source, tmp_path / "run")
    exported = export(ExportJob(load=tmp_path / "run", output=tmp_path / "out", dtype="fp32"))
    before, after = weights(source), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert exported.parity is not None
    assert exported.parity.largest_difference <= 1e-5
    assert exported.parameters == imported.parameters == sum(tensor.numel() for tensor in before.values())


def test_bf16_is_the_rounded_weight_and_transformers_writes_with_it(checkpoint: Path, tmp_path: Path) -> None:
    """The default dtype; AutoModel and AutoTokenizer load the directory and continue a text."""
    export(ExportJob(load=checkpoint, output=tmp_path / "out"))
    reader = CheckpointReader(find(checkpoint))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype is torch.bfloat16
    for parameter in logical_parameters(model_of(reader)):
        for name, part in names.to_hf(
            parameter.name, reader.tensor(f"model.{parameter.name}"), model_of(reader)
        ).items():
            assert torch.equal(model.state_dict()[name], part.bfloat16())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    written = model.generate(**tokenizer("def main", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(written[0]).startswith("def main")


def test_large_models_are_cut_into_shards(checkpoint: Path, tmp_path: Path) -> None:
    """Numbered files and an index, the same weights as in one file."""
    job = ExportJob(load=checkpoint, output=tmp_path / "out", dtype="fp32", verify=False, max_shard_bytes=220_000)
    exported = export(job)
    shards = [file for file in exported.files if file.endswith(".safetensors")]
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * exported.parameters
    whole = export(ExportJob(load=checkpoint, output=tmp_path / "whole", dtype="fp32", verify=False))
    assert "model.safetensors" in whole.files
    one, many = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(one[name], many[name]) for name in one)
    import_hf(tmp_path / "out", tmp_path / "again")  # shards are read back too


def test_a_tensor_above_the_limit_stands_alone(checkpoint: Path) -> None:
    """A limit below every tensor still gives one to a file."""
    model = model_of(CheckpointReader(find(checkpoint)))
    assert all(len(shard) == 1 for shard in plan_shards(model, 4, 1))


def test_every_weight_is_read_back(checkpoint: Path, tmp_path: Path) -> None:
    """Planted: one element of one row of the embedding, which the probe's logits may never see."""
    export(ExportJob(load=checkpoint, output=tmp_path / "out", dtype="fp32", verify=False))
    reader = CheckpointReader(find(checkpoint))

    def changed(logical_name: str) -> torch.Tensor:
        tensor = reader.tensor(f"model.{logical_name}")
        if logical_name == "embedding.word_embeddings.weight":
            tensor[799, 0] += 1e-6
        return tensor

    with pytest.raises(Mismatch, match=r"embedding\.word_embeddings\.weight"):
        check_weights(tmp_path / "out", model_of(reader), changed)


def test_a_mismatch_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """Planted: a table of names that swaps gate and up. The weights load, the count is right, the logits are not."""
    gate, up = (f"decoder.layers.{{layer}}.mlp.linear_fc1.{part}.weight" for part in ("gate", "up"))
    with pytest.MonkeyPatch.context() as planted, pytest.raises(Mismatch, match=r"differ .* by .*the bound is"):
        gate_row, up_row = names.ROWS[gate], names.ROWS[up]
        planted.setitem(names.ROWS, gate, up_row)  # type: ignore[arg-type]
        planted.setitem(names.ROWS, up, gate_row)  # type: ignore[arg-type]
        export(ExportJob(load=checkpoint, output=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_the_output_has_to_be_free(checkpoint: Path, tmp_path: Path) -> None:
    """A directory with something in it is refused and left alone; an empty one is taken."""
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        export(ExportJob(load=checkpoint, output=tmp_path, verify=False))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    export(ExportJob(load=checkpoint, output=tmp_path / "empty", verify=False))


def test_no_checkpoint_no_export(checkpoint: Path, tmp_path: Path) -> None:
    """Neither an empty directory nor an iteration that does not exist is skipped."""
    with pytest.raises(ConfigError, match="no finished checkpoint"):
        export(ExportJob(load=tmp_path, output=tmp_path / "out"))
    with pytest.raises(ConfigError, match="iteration 7"):
        export(ExportJob(load=checkpoint, iteration=7, output=tmp_path / "out"))


def test_the_tokenizer_has_to_be_the_runs_own(
    checkpoint: Path, make_llama: Callable[..., Path], train_tokenizer: Callable[..., Path], tmp_path: Path
) -> None:
    """Another, a missing, none, one with more pieces than rows: each refused, and nothing left behind."""
    other = train_tokenizer(vocab_size=600)
    with pytest.raises(ConfigError, match="not the one that made the run's data"):
        export(ExportJob(load=checkpoint, output=tmp_path / "out", tokenizer_model=other))
    with pytest.raises(ConfigError, match=r"nowhere\.model does not exist"):
        export(ExportJob(load=checkpoint, output=tmp_path / "out", tokenizer_model=tmp_path / "nowhere.model"))
    source = make_llama()
    (source / "tokenizer.model").unlink()
    import_hf(source, tmp_path / "run")
    with pytest.raises(ConfigError, match="named no tokenizer"):
        export(ExportJob(load=tmp_path / "run", output=tmp_path / "out"))
    larger = train_tokenizer(vocab_size=900)
    with pytest.raises(ConfigError, match=r"900 pieces, but the checkpoint's vocabulary only 800"):
        export(ExportJob(load=tmp_path / "run", output=tmp_path / "out", tokenizer_model=larger))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_trained_runs_tokenizer_stands_with_its_order_of_samples(checkpoint: Path, tmp_path: Path) -> None:
    """Where `pretrain` records it: another checksum there is refused."""
    run = tmp_path / "run"
    shutil.copytree(checkpoint, run)
    saved = manifest.read(find(run))
    rules = {"seed": 1, "seq_length": 8, "split": (1.0, 0.0, 0.0), "inter_document_masking": False}
    order = SampleOrder(**rules, tokenizer_sha256="0" * 64, weights=(), datasets=())
    other = replace(saved, provenance=manifest.Provenance(versions={}, order=order))
    (find(run) / "manifest.json").write_text(manifest.to_text(other))
    with pytest.raises(ConfigError, match="the checkpoint says 000000000000"):
        export(ExportJob(load=run, output=tmp_path / "out", verify=False))


@pytest.mark.slow
def test_both_commands(make_llama: Callable[..., Path], python: Path, tmp_path: Path) -> None:
    """From another's model through a checkpoint and back on the command line; then 2 for a taken output."""

    def tool(name: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [str(python), f"tools/{name}.py", *map(str, arguments)]
        environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PATH": ""}
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)

    imported = tool("convert_from_hf", "--input", make_llama(), "--output", tmp_path / "run")
    assert (imported.returncode, "logits match the source's" in imported.stdout) == (0, True), imported.stderr
    merged = tool("merge_to_hf", "--load", tmp_path / "run", "--output", tmp_path / "out", "--dtype", "fp32")
    assert (merged.returncode, "logits match" in merged.stdout) == (0, True), merged.stderr
    again = tool("merge_to_hf", "--load", tmp_path / "run", "--output", tmp_path / "out")
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("error: --output")
    assert "Traceback" not in again.stderr
