"""What is imported can be trained and exported with nothing but `--load`: its recipe, and rows beyond its tokenizer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from tinyllama_mcore.checkpoint import compatibility
from tinyllama_mcore.checkpoint.layout import find
from tinyllama_mcore.checkpoint.manifest import Checkpoint, read, to_text
from tinyllama_mcore.config import cli, recipes, records
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.hf.config import from_hf_config
from tinyllama_mcore.hf.importing import import_hf
from tinyllama_mcore.sampling.sample_order import BlendHistory, SampleOrder

REPOSITORY = Path(__file__).resolve().parents[2]
ZERO1 = str(REPOSITORY / "ds_configs" / "zero1.json")


def planned(*flags: object) -> RunConfig:
    """The run that a command line asks for, on a machine with a GPU."""
    return cli.parse(["--deepspeed_config", ZERO1, *map(str, flags)], world_size=1, has_gpu=lambda: True)


@pytest.fixture(scope="module")
def source(make_llama: Callable[..., Path]) -> Path:
    """A model with 3 rows more than its tokenizer has pieces, and a base that no recipe has."""
    return make_llama(vocab_size=803, rope_theta=50_000.0)


@pytest.fixture(scope="module")
def imported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint."""
    directory = tmp_path_factory.mktemp("imported") / "run"
    import_hf(source, directory, verify=False)
    return directory


def test_the_recipe_beside_the_checkpoint_is_the_models(source: Path, imported: Path) -> None:
    """`--recipe` takes it, and `--load` alone says the same; numbers that the model does not say are a recipe's."""
    model = from_hf_config(json.loads((source / "config.json").read_text()), "config.json")
    named, silent = planned("--recipe", imported / "recipe.json"), planned("--load", imported)
    nearest = recipes.RECIPES["tinyllama-debug"]
    for run in (named, silent):
        assert run.model == model
        assert (run.optimizer, run.batch.global_batch_size, run.sharding.precision) == (
            nearest.optimizer,
            nearest.batch.global_batch_size,
            nearest.precision,
        )
    assert named.batch == silent.batch
    assert named.notes == ("no --save given: this run keeps no checkpoint",)
    assert silent.notes[0].startswith(f"no --recipe given: the numbers of {imported}/iter_0000000/manifest.json")


def test_the_command_line_goes_before_the_checkpoint(imported: Path) -> None:
    """A flag changes its number and no other; a named recipe, and --no-load, leave the checkpoint's out."""
    run = planned("--load", imported, "--lr", "1e-3", "--train-iters", "7")
    assert (run.optimizer.lr, run.batch.train_iters, run.model.vocab_size) == (1e-3, 7, 803)
    assert planned("--load", imported, "--recipe", "tinyllama-120m").model.vocab_size == 32000
    assert planned("--save", imported).model.vocab_size == 803
    assert planned("--save", imported, "--no-load").recipe == "tinyllama-1.1b"


def test_a_damaged_manifest_gives_no_recipe(imported: Path, tmp_path: Path) -> None:
    """The one before it does, as its checkpoint is the one that is taken; a copy beside it is none."""
    for name, lr in (("0000005", 1e-3), ("0000020", 2e-3), ("10000000", 3e-3), ("0000020_copy", 4e-3)):
        folder = tmp_path / f"iter_{name}"
        folder.mkdir()
        manifest = read(find(imported))
        run = {**manifest.run, "optimizer": {**manifest.run["optimizer"], "lr": lr}}
        text = to_text(type(manifest)(**{**vars(manifest), "run": run}))
        (folder / "manifest.json").write_text(text.replace("0.003", "0.004"))
    assert planned("--load", tmp_path).optimizer.lr == 2e-3
    assert planned("--load", tmp_path, "--iteration", 5).optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": 797}, "800 pieces"),
        ({"hidden_size": 24, "num_attention_heads": 8, "num_key_value_heads": 2}, "heads"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5, "rope_theta": 1e4}}, "factor at least 1"),
    ],
    ids=["fewer rows than pieces", "heads of odd width", "a factor below 1"],
)
def test_what_cannot_be_trained_is_not_imported(
    changes: dict, named: str, make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """The rule is told at the import, not by the trainer."""
    with pytest.raises(ConfigError, match=named):
        import_hf(make_llama(**changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_data_of_another_tokenizer_are_refused(imported: Path) -> None:
    """Ids would mean other tokens than the model's; who means it says so."""
    folder = find(imported)
    checkpoint = Checkpoint(folder, read(folder))
    own = checkpoint.manifest.provenance.tokenizer_sha256
    rules = {"seed": 1, "seq_length": 8, "split": (1.0, 0.0, 0.0), "inter_document_masking": False}
    order = SampleOrder(**rules, tokenizer_sha256=own, weights=(), datasets=())
    other = replace(order, tokenizer_sha256="0" * 64)
    assert compatibility.blend_history(checkpoint, order) == BlendHistory()
    with pytest.raises(ConfigError, match="was imported with the tokenizer of sha256"):
        compatibility.blend_history(checkpoint, other)
    assert compatibility.blend_history(checkpoint, other, may_change=True) == BlendHistory()


@pytest.mark.slow
def test_an_import_is_trained_and_exported_by_load_alone(
    source: Path, imported: Path, python: Path, tmp_path: Path
) -> None:
    """By commands: 803 rows in, trained on the tokenizer's 800 ids, 803 rows out."""

    def command(*words: object) -> str:
        environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PATH": ""}
        done = subprocess.run(
            [str(python), *map(str, words)],
            cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    texts = tmp_path / "texts.jsonl"
    code = Path(json.__file__).read_text()
    texts.write_text("".join(json.dumps({"text": code[start : start + 900]}) + "\n" for start in range(0, 9000, 90)))
    data = ("--input", texts, "--output-prefix", tmp_path / "data", "--tokenizer-model", source / "tokenizer.model")
    command("tools/preprocess_data.py", *data, "--append-eod")
    told = command(
        *(
            "examples/pretrain_tinyllama.py",
            "--deepspeed_config",
            ZERO1,
            "--load",
            imported,
            "--save",
            tmp_path / "run",
        ),
        *("--data-path", tmp_path / "data_text_document", "--train-iters", 12, "--exit-interval", 2),
    )
    assert f"no --recipe given: the numbers of {imported}" in told
    assert "vocab_size 803 exceeds the tokenizer's 800 pieces" in told
    command("tools/merge_to_hf.py", "--load", tmp_path / "run", "--output", tmp_path / "hf", "--tokenizer-model",
            source / "tokenizer.model")  # fmt: skip
    model = LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    assert (model.config.vocab_size, model.lm_head.weight.shape[0]) == (803, 803)
    saved = records.from_plain(RunConfig, read(find(tmp_path / "run")).run, "manifest")
    assert saved.model == from_hf_config(json.loads((source / "config.json").read_text()), "config.json")
