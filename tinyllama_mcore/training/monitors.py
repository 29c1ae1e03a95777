"""Scalars of a run by iteration: one list of names for TensorBoard, CSV files and Weights & Biases.

The DeepSpeed JSON's monitors end here too: DeepSpeed itself would give them only the learning rate. What an earlier
attempt wrote beyond the iteration that a run resumes from is dropped, or hidden where it cannot be dropped. Neighbour:
`loggers` has the protocol, the console, the metrics file and TensorBoard, and decides which of them a run has.
"""

from __future__ import annotations

import csv
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from tinyllama_mcore.checkpoint.manifest import Event
from tinyllama_mcore.config import atomic
from tinyllama_mcore.config.data_config import LaterBlend
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.loop_config import WandbConfig
from tinyllama_mcore.config.paths import told_apart
from tinyllama_mcore.training.metrics import StepRecord, Validation

SCALARS = {  # the tags that Megatron-LM users search for
    "lm loss": "lm_loss",
    "grad-norm": "grad_norm",
    "learning-rate": "lr",
    "iteration-time": "iteration_time_s",
    "data-wait-time": "data_wait_s",
    "tokens-per-s-per-gpu": "tokens_per_s_per_gpu",
    "tflops-per-gpu": "tflops_per_gpu",
    "mfu": "mfu",
    "mfu-causal": "mfu_causal",
    "consumed-tokens": "consumed_tokens",
    "peak-memory-gib": "peak_memory_gib",
    "skipped": "skipped",
}
"""Tag -> field of StepRecord."""
STRAGGLER = {
    "straggler-rank": "rank",
    "straggler-over-median": "over_median",
    "straggler-pass-time": "pass_s",
    "straggler-data-rank": "data_rank",
    "straggler-data-wait-time": "data_wait_s",
}
"""Tag -> field of Straggler, where it is asked for."""
GROUP_NORM = "grad-norm "
"""Before the name of a group: the tag of its norm, where norms by group are asked for."""
VALIDATION, SAVING = "lm loss validation", "save-checkpoint-time"
"""Tags of the validation loss in nats, and of the seconds that training waited for a checkpoint. Where validation
samples come from several datasets, the first tag with a dataset's name behind it is that one's loss."""


class ScalarLogger:
    """What the three have in common; see `loggers.Logger`. Each writes scalars, and takes them back."""

    @abstractmethod
    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of an iteration, by tag."""

    @abstractmethod
    def take_back(self, iteration: int) -> None:
        """What lies beyond `iteration` no longer counts."""

    @abstractmethod
    def close(self) -> None:
        """Write what is still in memory."""

    def step(self, record: StepRecord) -> None:
        """Write every scalar of the record that has a value."""
        values = {tag: getattr(record, name) for tag, name in SCALARS.items()}
        values |= {GROUP_NORM + group: norm for group, norm in (record.grad_norm_by_group or {}).items()}
        if record.straggler is not None:
            values |= {tag: getattr(record.straggler, name) for tag, name in STRAGGLER.items()}
        self.write(record.iteration, {tag: float(value) for tag, value in values.items() if value is not None})

    def evaluation(self, iteration: int, found: Validation) -> None:
        """Write the validation loss, and of each dataset where there are several."""
        each = zip(told_apart(found.by_dataset), found.by_dataset.values(), strict=True)
        self.write(iteration, {VALIDATION: found.loss, **{f"{VALIDATION} {name}": loss for name, loss in each}})

    def saved(self, iteration: int, seconds: float, *, in_background: bool) -> None:
        """Write the seconds."""
        self.write(iteration, {SAVING: seconds})

    def went_back(self, event: Event, iteration: int) -> None:
        """The run continues from `iteration`."""
        self.take_back(iteration)

    def blend_began(self, iteration: int, later: LaterBlend) -> None:
        """No scalar says it."""


class CsvLogger(ScalarLogger):
    """One file a tag, as DeepSpeed's csv monitor names them: `<tag>.csv`, a row of names, then step and value."""

    def __init__(self, directory: str, *, start_iteration: int) -> None:
        """Append to the run's files in `directory`; their rows beyond `start_iteration` are dropped.

        Raises:
            ConfigError: a file of their names holds something else.
        """
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.files: dict[str, TextIO] = {}
        self.take_back(start_iteration)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """One row in the file of each tag, there before the next iteration."""
        for tag, value in scalars.items():
            if tag not in self.files:
                self.files[tag] = self._open(tag)
            csv.writer(self.files[tag]).writerow([iteration, repr(value)])
            self.files[tag].flush()

    def take_back(self, iteration: int) -> None:
        """Drop the rows beyond, and one that a crash cut short."""
        self.close()
        for path, rows in _rows(self.directory):
            kept = "".join(row for row in rows if _iteration(path, row) <= iteration)
            if kept.encode() != path.read_bytes():
                atomic.write_text(path, kept)

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()
        self.files.clear()

    def _open(self, tag: str) -> TextIO:
        path = self.directory / _file_name(tag)
        is_new = not path.exists() or path.stat().st_size == 0
        file = path.open("a", newline="")
        if is_new:
            csv.writer(file).writerow(["step", tag])
        return file


def holds_rows_beyond(directory: str, iteration: int) -> bool:
    """Whether the files of a CsvLogger in the directory hold whole rows that a run from `iteration` on would drop.

    Raises:
        ConfigError: a file of their names holds something else.
    """
    return any(_iteration(path, row) > iteration for path, rows in _rows(Path(directory)) for row in rows)


def _rows(directory: Path) -> Iterator[tuple[Path, list[str]]]:
    """The whole lines of each file that a CsvLogger has written in the directory; one that a crash cut short is none.

    Raises:
        ConfigError: a file of their names does not begin as they do. Files of other names are anybody's.
    """
    fixed = {_file_name(tag) for tag in (*SCALARS, *STRAGGLER, VALIDATION, SAVING)}
    named = tuple(_file_name(start).removesuffix(".csv") for start in (f"{VALIDATION} ", GROUP_NORM))
    for path in sorted(directory.glob("*.csv")):
        if path.name not in fixed and not path.name.startswith(named):
            continue
        lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True)
        names = next(csv.reader(lines), ["step", ""])
        if names[:1] != ["step"] or len(names) != 2 or (len(lines) > 1 and _file_name(names[1]) != path.name):
            raise ConfigError(_something_else(path))
        yield path, [line for line in lines if line.endswith("\n")]


def _iteration(path: Path, row: str) -> int:
    """The iteration of a row; 0 of the names above them. ConfigError where it is neither."""
    first = row.partition(",")[0]
    if first != "step" and not first.isdecimal():
        raise ConfigError(_something_else(path))
    return 0 if first == "step" else int(first)


def _file_name(tag: str) -> str:
    return f"{re.sub('[ /-]', '_', tag)}.csv"


def _something_else(path: Path) -> str:
    return (
        f"csv_monitor: {path} holds something else than the scalars of a run; give the block another job_name or "
        "output_path"
    )


class WandbLogger(ScalarLogger):
    """A run of Weights & Biases, over the scalar `iteration`. WANDB_MODE=offline keeps it in the directory `wandb`.

    A run that resumes is a new run there, which begins after the iteration that it resumes from.
    """

    def __init__(self, config: WandbConfig) -> None:
        """Begin a run.

        Raises:
            ConfigError: wandb does not take it, for example because nobody has logged in.
        """
        import wandb

        try:
            self.run = wandb.init(project=config.project, group=config.group, entity=config.team)
        except wandb.errors.Error as error:
            raise ConfigError(_refused(error)) from error
        # not wandb's own step, which never goes back
        self.run.define_metric("iteration")
        self.run.define_metric("*", step_metric="iteration")

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """One entry."""
        self.run.log({"iteration": iteration, **scalars})

    def take_back(self, iteration: int) -> None:
        """Nothing is dropped: the same iterations come again, later."""

    def close(self) -> None:
        """Send what is left, where the run is online."""
        self.run.finish()


def refuse_wandb() -> None:
    """Refuse, before anything is built, a run that wandb would not take. Imports wandb.

    Raises:
        ConfigError: it would be online, and nobody has logged in.
    """
    import wandb

    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise ConfigError(_refused("nobody has logged in"))


def _refused(why: object) -> str:
    return f"the wandb block: {why}; log in with `wandb login`, or keep the run on disk with WANDB_MODE=offline"
