"""The trainer from Python: a run composed, trained, evaluated, saved and exported without a command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import write_json
from tests.distributed.recipe import RECIPE
from tinyllama_mcore.config import cli
from tinyllama_mcore.config.compose import compose
from tinyllama_mcore.config.errors import ConfigError

ZERO1 = {"zero_optimization": {"stage": 1}, "gradient_clipping": "auto"}


def _by_hand(home: Path, corpus: list[str], tokenizer: Path) -> int:
    """What docs/howto/python.md shows, on every rank."""
    from tinyllama_mcore.hf.export import ExportJob, export
    from tinyllama_mcore.parallel import launch
    from tinyllama_mcore.run import opened, train

    run = compose(
        str(home / "recipe.json"),
        str(home / "ds.json"),
        batch={"train_iters": 4},
        layout={"world_size": launch.read().world_size},
        data={"blend": ((0.7, corpus[1]), (0.3, corpus[3])), "split": (80, 20, 0)},
        checkpoint={"save": str(home / "checkpoints"), "save_interval": 2},
        loop={"eval_interval": 2, "eval_iters": 2, "metrics_file": str(home / "metrics.jsonl")},
    )
    state = train(run)
    second = dataclasses.replace(run.checkpoint, load=str(home / "checkpoints"), save=str(home / "second"))
    loop = dataclasses.replace(run.loop, metrics_file=None)
    with opened(dataclasses.replace(run, checkpoint=second, loop=loop)) as trainer:
        assert trainer.state == trainer.train() == state
        loss = trainer.evaluate()
        trainer.save()
    if launch.read().rank == 0:
        export(ExportJob(load=home / "second", output=home / "hf", tokenizer_model=tokenizer))
        (home / "told.json").write_text(json.dumps({"iteration": state.iteration, "loss": loss}))
    return 0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a recipe and a JSON."""
    write_json(tmp_path / "recipe.json", RECIPE)
    write_json(tmp_path / "ds.json", ZERO1)
    return tmp_path


def test_a_run_without_a_command_line(home: Path, corpus: list[str], corpus_tokenizer: Path) -> None:
    """Its curve is the command's, bit for bit; evaluation is of the same samples; what is saved can be exported."""
    codes = ranks.run(2, _by_hand, home, corpus, corpus_tokenizer, logs=home / "logs")
    assert codes == [0, 0], (home / "logs" / "rank0.log").read_text()[-3000:]
    told = json.loads((home / "told.json").read_text())
    argv = ["--deepspeed_config", str(home / "ds.json"), "--recipe", str(home / "recipe.json"), "--data-path", *corpus]
    argv += ["--train-iters", "4", "--split", "80,20,0", "--eval-interval", "2", "--eval-iters", "2"]
    output = ranks.pretrain(
        [*argv, "--metrics-file", str(home / "theirs.jsonl")], world_size=2, logs=home / "their_logs"
    )
    ours, theirs = (ranks.metrics(home / name) for name in ("metrics.jsonl", "theirs.jsonl"))
    assert [(r["lm_loss"], r["grad_norm"]) for r in ours] == [(r["lm_loss"], r["grad_norm"]) for r in theirs]
    assert told["iteration"] == 4
    assert f"{told['loss']:.4f}" in output.rpartition("validation")[2]
    assert (home / "hf" / "model.safetensors").is_file()


def test_what_is_composed_is_what_the_command_gives(home: Path, corpus: list[str]) -> None:
    """Every field, the JSON's own numbers among them."""
    write_json(home / "ds.json", {**ZERO1, "gradient_clipping": 0.5, "train_micro_batch_size_per_gpu": 1})
    argv = ["--deepspeed_config", str(home / "ds.json"), "--recipe", str(home / "recipe.json"), "--seed", "7"]
    argv += ["--data-path", *corpus, "--lr", "2e-3", "--save", str(home / "kept"), "--no-cuda-graph"]
    given = cli.parse(argv, world_size=2, has_gpu=lambda: False)
    composed = compose(
        str(home / "recipe.json"),
        str(home / "ds.json"),
        seed=7,
        cuda_graph=False,
        optimizer={"lr": 2e-3},
        layout={"world_size": 2},
        data={"blend": ((0.7, corpus[1]), (0.3, corpus[3]))},
        checkpoint={"save": str(home / "kept")},
    )
    assert composed == dataclasses.replace(given, notes=())
    assert composed.optimizer.clip_grad == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": {"train_iter": 1}}, r"batch\.train_iter is not a field of a run; did you mean train_iters\?"),
        ({"bach": {"train_iters": 1}}, "bach is not a field of a run"),
        ({"sed": 1}, r"sed is not a field of a run; did you mean seed\?"),
        ({"batch": {"micro_batch_size": 2}}, r"micro_batch_size is 2, but train_micro_batch_size_per_gpu of .* is 1;"),
    ],
)
def test_what_is_no_field_is_refused(changes: dict, message: str, home: Path) -> None:
    """And what the JSON says otherwise."""
    write_json(home / "ds.json", {**ZERO1, "train_micro_batch_size_per_gpu": 1})
    with pytest.raises(ConfigError, match=message):
        compose(str(home / "recipe.json"), str(home / "ds.json"), **changes)


def _asks_for_what_it_has_not(home: Path, corpus: list[str]) -> int:
    from tinyllama_mcore.run import opened

    data = {"blend": ((1.0, corpus[1]),)}
    with opened(compose(str(home / "recipe.json"), str(home / "ds.json"), data=data)) as trainer:
        with pytest.raises(ConfigError, match=r"no validation data .* loop\.eval_interval must be above 0"):
            trainer.evaluate()
        with pytest.raises(ConfigError, match=r"keeps no checkpoints: checkpoint\.save must name"):
            trainer.save()
    return 0


def test_a_run_without_validation_or_checkpoints_says_so(home: Path, corpus: list[str]) -> None:
    """In the words of the fields that are missing."""
    codes = ranks.run(1, _asks_for_what_it_has_not, home, corpus, logs=home / "logs")
    assert codes == [0], (home / "logs" / "rank0.log").read_text()[-3000:]


def test_another_job_is_refused(home: Path) -> None:
    """A layout of more processes than the job has, before anything is opened."""
    from tinyllama_mcore.run import train

    run = compose(str(home / "recipe.json"), str(home / "ds.json"), layout={"world_size": 2})
    with pytest.raises(ConfigError, match="the layout is of 2 processes, and this job has 1"):
        train(run)
