"""The trainer from Python: a run composed, trained, evaluated, saved and exported without a command line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import write_json
from tests.distributed.recipe import RECIPE
from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.checkpoint.manifest import RunState
from tinyllama_mcore.config import cli
from tinyllama_mcore.config.compose import compose
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.parallel import launch, launchers

ZERO1 = {"zero_optimization": {"stage": 1}, "gradient_clipping": "auto"}


def _composed(home: Path, corpus: list[str], save: str = "checkpoints", **loop: Any) -> RunConfig:  # noqa: ANN401
    """What docs/howto/python.md composes: one program, however often it is started."""
    return compose(
        str(home / "recipe.json"),
        str(home / "ds.json"),
        batch={"train_iters": 4},
        layout={"world_size": launch.this_process().world_size},
        data={"blend": ((7, corpus[1]), (3, corpus[3])), "split": (80, 20, 0)},
        checkpoint={"save": str(home / save), "save_interval": 2},
        loop={"eval_interval": 2, "eval_iters": 2, "metrics_file": str(home / "metrics.jsonl"), **loop},
    )


def _first_program(home: Path, corpus: list[str]) -> int:
    """Runs one after another, whatever becomes of each; the first run only begins."""
    from tinyllama_mcore.run import opened, train
    from tinyllama_mcore.training import loggers

    begun = _composed(home, corpus, exit_interval=1)
    assert train(begun).iteration == 1
    with pytest.raises(KeyError, match="mine"), opened(begun):
        raise KeyError("mine")  # before the model is built

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept, loggers.CsvLogger = loggers.CsvLogger, full  # on rank 0 only, and after the job is joined
    refused = _composed(home, corpus, "other", metrics_file=None, csv_dir=str(home / "csv"))
    with pytest.raises(ConfigError, match=r"csv_monitor: .*csv cannot be written: No space left on device"):
        train(refused)
    loggers.CsvLogger = kept
    with pytest.raises(KeyError, match="mine"), opened(begun) as trainer:
        assert trainer.state.iteration == 1
        trainer.train()  # leaves at once: iteration 2 is a multiple of 1
        raise KeyError("mine")
    return 0


def _second_program(home: Path, corpus: list[str], tokenizer: Path) -> int:
    """The same program again, to the end, with every method in one block; then an export."""
    from tinyllama_mcore.hf.export import ExportJob, export
    from tinyllama_mcore.run import opened, train

    with opened(_composed(home, corpus, exit_interval=3)) as trainer:
        assert trainer.state.iteration == 2
        assert trainer.train().iteration == 3
        assert trainer.train().iteration == trainer.state.iteration == 4
        loss = trainer.evaluate()
        trainer.save()
    state = train(_composed(home, corpus))
    assert state == trainer.state, "nothing is left to train"
    second = _composed(home, corpus, "second", metrics_file=None)
    with opened(replace(second, checkpoint=replace(second.checkpoint, load=str(home / "checkpoints")))) as trainer:
        assert trainer.evaluate() == loss
        trainer.save()
    if launch.this_process().rank == 0:
        export(ExportJob(load=home / "second", output=home / "hf", tokenizer_model=tokenizer))
        (home / "told.json").write_text(json.dumps({"iteration": state.iteration, "loss": loss}))
    return 0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a recipe and a JSON."""
    write_json(tmp_path / "recipe.json", RECIPE)
    write_json(tmp_path / "ds.json", ZERO1)
    return tmp_path


def test_runs_without_a_command_line(home: Path, corpus: list[str], corpus_tokenizer: Path) -> None:
    """Their curve is the command's, bit for bit; evaluation is of the same samples; what is saved can be exported."""
    for program, more in ((_first_program, ()), (_second_program, (corpus_tokenizer,))):
        codes = ranks.run(2, program, home, corpus, *more, logs=home / "logs")
        assert codes == [0, 0], "".join((home / "logs" / f"rank{rank}.log").read_text()[-3000:] for rank in (0, 1))
    told = json.loads((home / "told.json").read_text())
    assert layout.iterations(home / "checkpoints") == [1, 2, 3, 4]
    assert not list(home.glob("checkpoints/abandoned-*"))
    argv = ["--deepspeed_config", str(home / "ds.json"), "--recipe", str(home / "recipe.json"), "--data-path", *corpus]
    argv += ["--train-iters", "4", "--split", "80,20,0", "--eval-interval", "2", "--eval-iters", "2"]
    output = ranks.pretrain(
        [*argv, "--metrics-file", str(home / "theirs.jsonl")], world_size=2, logs=home / "their_logs"
    )
    ours, theirs = (ranks.metrics(home / name) for name in ("metrics.jsonl", "theirs.jsonl"))
    assert [r["iteration"] for r in ours] == [1, 2, 3, 4]
    assert [(r["lm_loss"], r["grad_norm"]) for r in ours] == [(r["lm_loss"], r["grad_norm"]) for r in theirs]
    assert told["iteration"] == 4
    assert f"{told['loss']:.4f}" in output.rpartition("validation")[2]
    assert (home / "hf" / "model.safetensors").is_file()
    # a command line resumes what a program began, which gave the blend's weights as other numbers
    again = ranks.pretrain([*argv, "--save", str(home / "checkpoints")], world_size=2, logs=home / "their_logs")
    assert "it is finished, and nothing was trained" in again


IS_FREE = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def _in_a_thread(home: Path, corpus: list[str]) -> int:
    """A program that no launcher started, which trains beside other work and then starts other programs."""
    from tinyllama_mcore.run import train

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    states: list[RunState] = []
    thread = threading.Thread(target=lambda: states.append(train(_composed(home, corpus))))
    thread.start()
    thread.join()
    assert [state.iteration for state in states] == [4]
    words = {name for words in launchers.LAUNCHERS for name in (words.rank, words.size, *words.local_rank)}
    assert not {*words, "MASTER_ADDR", "MASTER_PORT"} & set(os.environ)
    assert not {"watchdog", "interrupts"} & {each.name for each in threading.enumerate()}
    lock = home / "checkpoints" / ".lock"
    return subprocess.run([sys.executable, "-c", IS_FREE, str(lock)], check=False).returncode


def test_nothing_is_left_of_a_run(home: Path, corpus: list[str]) -> None:
    """Neither variables that say a child were a rank, nor threads, nor the lock on its directory."""
    codes = ranks.run(1, _in_a_thread, home, corpus, logs=home / "logs")
    assert codes == [0], (home / "logs" / "rank0.log").read_text()[-3000:]


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
    assert composed == replace(given, notes=())
    assert composed.optimizer.clip_grad == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": {"train_iter": 1}}, r"batch\.train_iter is not a field of a run; did you mean train_iters\?"),
        ({"bach": {"train_iters": 1}}, r"bach is not a field of a run; did you mean batch\?"),
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
