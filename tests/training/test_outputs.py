"""What a run writes beside its checkpoints: its own files are gone on with, another run's are refused."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.checkpoint.manifest import Checkpoint, Manifest, Provenance, RunState, to_text
from tinyllama_mcore.config import cli, records
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import MANIFEST
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.training import outputs
from tinyllama_mcore.training.monitors import CsvLogger

REPOSITORY = Path(__file__).parents[2]
LINES = 3
"""Iterations that stand in the metrics file."""


def run_of(home: Path, *flags: str) -> RunConfig:
    """A run as a command line asks for it, from a home of its own."""
    words = [word.replace("HOME", str(home)) for word in flags]
    scalars = None
    if CSV[0] in words:  # a block of the JSON, which stands here among the flags
        at = words.index(CSV[0])
        _, scalars = words[at : at + 2]
        del words[at : at + 2]
    argv = ["--deepspeed_config", str(REPOSITORY / "ds_configs/zero1.json"), "--recipe", "tinyllama-debug", *words]
    run = cli.parse(argv, world_size=1, has_gpu=lambda: False)
    return replace(run, loop=replace(run.loop, csv_dir=scalars))


def wrote(run: RunConfig) -> None:
    """What a run leaves of its outputs after LINES iterations."""
    outputs.record(run)
    if run.loop.metrics_file:
        lines = [json.dumps({"iteration": i, "lm_loss": 6.0}) + "\n" for i in range(1, LINES + 1)]
        Path(run.loop.metrics_file).write_text("".join(lines))
    if run.loop.csv_dir:
        logger = CsvLogger(run.loop.csv_dir, start_iteration=0)
        for iteration in range(1, LINES + 1):
            logger.write(iteration, {"lm loss": 6.0})
        logger.close()
    if run.loop.tensorboard_dir:
        Path(run.loop.tensorboard_dir).mkdir(exist_ok=True)
        (Path(run.loop.tensorboard_dir) / "events.out.tfevents.1.host").touch()


def saved(run: RunConfig, iteration: int) -> Checkpoint:
    """A checkpoint of the run on the disk, without tensors."""
    assert run.checkpoint.save is not None
    folder = layout.folder(Path(run.checkpoint.save), iteration)
    folder.mkdir(parents=True, exist_ok=True)
    state = RunState(iteration=iteration)
    provenance = Provenance(versions={})
    manifest = Manifest(state=state, run=records.to_plain(run), provenance=provenance, parameters=1, kinds=())
    (folder / MANIFEST).write_text(to_text(manifest))
    return Checkpoint(folder, manifest)


METRICS, EVENTS = ("--metrics-file", "HOME/m.jsonl"), ("--tensorboard-dir", "HOME/tb")
CSV = ("csv_monitor", "HOME/csv")
OWN, OTHER = ("--save", "HOME/own"), ("--save", "HOME/other")
EACH = (METRICS, EVENTS, CSV)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run that finds outputs where it would write its own."""

    writer: tuple[str, ...]
    """Flags of the run that wrote them."""
    saved: int | None = None
    """Iteration of the writer's checkpoint; None: it has none."""
    flags: tuple[str, ...]
    """Of the run that starts now."""
    resumes: int | None = None
    """Iteration that it resumes from; None: it starts from iteration 0."""
    refused: tuple[tuple[str, str], ...] = ()
    """Outputs that it may not write."""


CASES = {
    "from zero on another run's": Start(writer=OTHER, flags=OWN, refused=EACH),
    "from zero on those of a run that keeps nothing": Start(writer=(), flags=OWN, refused=EACH),
    "keeping nothing, on a run's": Start(writer=OWN, flags=(), refused=EACH),
    "from zero again, killed before its first checkpoint": Start(writer=OWN, flags=OWN),
    "from zero beside its own checkpoint": Start(writer=OWN, saved=2, flags=(*OWN, "--no-load"), refused=EACH),
    "resuming": Start(writer=OWN, saved=2, flags=OWN, resumes=2),
    "resuming in files of another, after all that they hold": Start(writer=OTHER, flags=OWN, resumes=LINES),
    "resuming in files of another, which would be cut": Start(
        writer=OTHER, flags=OWN, resumes=1, refused=(METRICS, CSV)
    ),
    "branching off another run": Start(
        writer=OTHER, saved=2, flags=(*OWN, "--load", "HOME/other"), resumes=2, refused=EACH
    ),
    "loading without keeping": Start(writer=OWN, saved=2, flags=("--load", "HOME/own"), resumes=2, refused=EACH),
    "from zero, told to": Start(writer=OTHER, flags=(*OWN, "--overwrite")),
}


def contents(home: Path) -> dict[Path, bytes]:
    """Every file below a directory."""
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flag", EACH, ids=["metrics", "events", "csv"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_whose_files_they_are(flag: tuple[str, str], case: Start, tmp_path: Path) -> None:
    """Only what the same run wrote is taken; nothing changes where it is refused."""
    first, run = run_of(tmp_path, *case.writer, *flag), run_of(tmp_path, *case.flags, *flag)
    wrote(first)
    if case.saved is not None:
        saved(first, case.saved)
    source = run_of(tmp_path, *case.flags) if case.saved is None else first
    checkpoint = None if case.resumes is None else saved(source, case.resumes)
    held = contents(tmp_path)
    if flag in case.refused:
        with pytest.raises(ConfigError, match=rf"^{flag[0]}:? .* that another run wrote.*--overwrite$"):
            outputs.refuse_taken(run, checkpoint)
    else:
        outputs.refuse_taken(run, checkpoint)
    assert contents(tmp_path) == held


def test_a_run_that_moved_goes_on(tmp_path: Path) -> None:
    """The note is relative to --save: both may move."""
    home = tmp_path / "here"
    home.mkdir()
    wrote(run_of(home, *OWN, *METRICS))
    (tmp_path / "here").rename(tmp_path / "there")
    moved = run_of(tmp_path / "there", *OWN, *METRICS)
    outputs.refuse_taken(moved, None)
    outputs.refuse_taken(moved, saved(moved, 1))


@pytest.mark.parametrize("flag", [METRICS, CSV], ids=["metrics", "csv"])
def test_a_checkpoint_of_before_there_were_notes_goes_on(flag: tuple[str, str], tmp_path: Path) -> None:
    """Its manifest names the file, or the directory."""
    run = run_of(tmp_path, *OWN, *flag)
    wrote(run)
    (tmp_path / "own" / outputs.NOTE).unlink()
    outputs.refuse_taken(run, saved(run, 1))


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("metrics_file", "file/metrics.jsonl", r"--metrics-file .* cannot be written"),
        ("metrics_file", "file", r"--metrics-file .* something else than metrics"),
        ("metrics_file", "folder", r"--metrics-file .* cannot be written"),
        ("metrics_file", "/proc/nope/m.jsonl", r"--metrics-file .* cannot be written"),
        ("metrics_file", "x" * 300, r"--metrics-file .* cannot be written: File name too long"),
        ("tensorboard_dir", "file/events", r"--tensorboard-dir .* cannot be written"),
        ("tensorboard_dir", "/proc/nope", r"--tensorboard-dir .* cannot be written"),
    ],
)
def test_bad_outputs_are_refused_before_anything_is_built(tmp_path: Path, flag: str, value: str, message: str) -> None:
    """A file where a directory is needed, or the other way round; somebody else's file; a place for nobody."""
    (tmp_path / "file").write_text("mine\n")
    (tmp_path / "folder").mkdir()
    run = run_of(tmp_path)
    with pytest.raises(ConfigError, match=message):
        outputs.refuse_taken(replace(run, loop=replace(run.loop, **{flag: os.path.join(tmp_path, value)})), None)


def test_good_outputs_pass_and_nothing_is_made(tmp_path: Path) -> None:
    """New places, and an empty file."""
    (tmp_path / "m.jsonl").touch()
    outputs.refuse_taken(run_of(tmp_path, *METRICS, *EVENTS), None)
    outputs.refuse_taken(run_of(tmp_path, "--metrics-file", "HOME/new/m.jsonl"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]
