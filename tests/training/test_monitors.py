"""Scalars by iteration in CSV files and in Weights & Biases, read back; TensorBoard is with the loggers."""

from __future__ import annotations

import csv
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.test_loggers import record
from tinyllama_mcore.checkpoint.manifest import Event
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.training.metrics import Validation
from tinyllama_mcore.training.monitors import SCALARS, CsvLogger, holds_rows_beyond
from tinyllama_mcore.training.stragglers import straggler_of


def rows(path: Path) -> list[list[str]]:
    """A CSV file, by the standard library's reader."""
    with path.open(newline="") as file:
        return list(csv.reader(file))


def attempt(directory: Path, iterations: range, *, loss: float) -> CsvLogger:
    """One attempt of a run, still open."""
    logger = CsvLogger(str(directory), start_iteration=iterations.start - 1)
    for iteration in iterations:
        logger.step(record(iteration, loss, mfu=None))
    return logger


def test_one_file_a_scalar(tmp_path: Path) -> None:
    """Names as DeepSpeed's monitor makes them, steps that count iterations, every digit; nothing of what is unknown."""
    logger = attempt(tmp_path / "new", range(1, 4), loss=2 / 3)
    logger.evaluation(3, Validation(loss=0.5, by_dataset={"a/text": 0.25, "b/text": 0.75}))
    logger.saved(3, 1.5, in_background=False)
    assert rows(tmp_path / "new" / "lm_loss.csv") == [["step", "lm loss"], *([str(i), repr(2 / 3)] for i in (1, 2, 3))]
    assert rows(tmp_path / "new" / "lm_loss_validation.csv")[1:] == [["3", "0.5"]]
    of_one = rows(tmp_path / "new" / "lm_loss_validation_a_text.csv")
    assert of_one == [["step", "lm loss validation a/text"], ["3", "0.25"]]
    assert rows(tmp_path / "new" / "lm_loss_validation_b_text.csv")[1:] == [["3", "0.75"]]
    assert rows(tmp_path / "new" / "save_checkpoint_time.csv")[1:] == [["3", "1.5"]]
    assert rows(tmp_path / "new" / "skipped.csv")[1:] == [[str(i), "0.0"] for i in (1, 2, 3)]
    assert len(list((tmp_path / "new").iterdir())) == len(SCALARS) - 1 + 4
    logger.close()


def test_what_flags_ask_for_is_there(tmp_path: Path) -> None:
    """A file a group and a file a figure of the slowest rank, which a run that goes on continues."""
    asked = {
        "grad_norm_by_group": {"embedding": 0.25, "layers.0.mlp": 1.5},
        "straggler": straggler_of([0.5, 0.75], [0.0, 2.0], ["a", "b"]),
    }
    for start, end in ((0, 3), (2, 4)):
        logger = CsvLogger(str(tmp_path), start_iteration=start)
        for iteration in range(start + 1, end + 1):
            logger.step(record(iteration, **asked))
        logger.close()
    expected = {
        "grad_norm_embedding": 0.25,
        "grad_norm_layers.0.mlp": 1.5,
        "straggler_rank": 1.0,
        "straggler_over_median": 0.5,
        "straggler_pass_time": 0.75,
        "straggler_data_rank": 1.0,
        "straggler_data_wait_time": 2.0,
    }
    for name, value in expected.items():
        assert rows(tmp_path / f"{name}.csv")[1:] == [[str(i), repr(value)] for i in (1, 2, 3, 4)], name


def test_each_iteration_stands_once(tmp_path: Path) -> None:
    """A resume at 3 after 5, with a line that was cut short; then a return to 2."""
    attempt(tmp_path, range(1, 6), loss=1.0).close()
    path = tmp_path / "lm_loss.csv"
    path.write_bytes(path.read_bytes()[:-3])
    logger = attempt(tmp_path, range(4, 7), loss=2.0)
    expected = [["1", "1.0"], ["2", "1.0"], ["3", "1.0"], ["4", "2.0"], ["5", "2.0"], ["6", "2.0"]]
    assert rows(path)[1:] == expected
    event = Event(kind="rolled back", iteration=6, reason="a test", first_sample=32, end_sample=96)
    logger.went_back(event, 2)
    logger.step(record(3, 3.0))
    logger.close()
    assert rows(path) == [["step", "lm loss"], *expected[:2], ["3", "3.0"]]


def test_files_of_others_stay_as_they_are(tmp_path: Path) -> None:
    """Whatever they hold: in the same directory, which an empty job_name makes that of all jobs."""
    others = {"grades.csv": b"name,grade\nann,1\n", "step.csv": b"step,x\n99,1\n", "torn.csv": b"\xff\x00"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    attempt(tmp_path, range(1, 4), loss=1.0).close()
    own = tmp_path / "lm_loss.csv"
    before = own.stat().st_ino, own.stat().st_mtime_ns
    attempt(tmp_path, range(4, 4), loss=1.0).close()
    assert (own.stat().st_ino, own.stat().st_mtime_ns) == before, "nothing is dropped: nothing is written"
    attempt(tmp_path, range(2, 2), loss=1.0).close()
    assert own.stat().st_ino != before[0], "another file takes its place, so that a crash leaves one of the two"
    assert rows(own) == [["step", "lm loss"], ["1", "1.0"]]
    assert {name: (tmp_path / name).read_bytes() for name in others} == others


@pytest.mark.parametrize("content", ["name,grade\nann,1\n", "step,lm loss\nann,1\n", "step,other\n1,1\n", "x"])
def test_something_else_under_its_name_is_refused(content: str, tmp_path: Path) -> None:
    """In words, and it stays."""
    (tmp_path / "lm_loss.csv").write_text(content)
    for ask in (lambda: holds_rows_beyond(str(tmp_path), 0), lambda: attempt(tmp_path, range(1, 2), loss=1.0)):
        with pytest.raises(
            ConfigError, match=r"csv_monitor: .*lm_loss\.csv holds something else than the scalars of a"
        ):
            ask()
    assert (tmp_path / "lm_loss.csv").read_text() == content


def test_whether_rows_would_be_dropped(tmp_path: Path) -> None:
    """Only whole ones, of any scalar."""
    assert not holds_rows_beyond(str(tmp_path / "none"), 0)
    logger = attempt(tmp_path, range(1, 4), loss=1.0)
    logger.evaluation(4, Validation(loss=0.5, by_dataset={"a/text": 0.25, "b/text": 0.75}))
    logger.close()
    assert [holds_rows_beyond(str(tmp_path), iteration) for iteration in (2, 3, 4)] == [True, True, False]
    for path in tmp_path.glob("*validation*.csv"):
        path.write_bytes(path.read_bytes()[:-1])
    assert not holds_rows_beyond(str(tmp_path), 3)


WANDB = """
import sys
from tests.training.test_loggers import record
from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.config.loop_config import WandbConfig
from tinyllama_mcore.training.metrics import Validation
from tinyllama_mcore.training.monitors import WandbLogger, refuse_wandb

config = WandbConfig(project="p", group="g")
def program():
    refuse_wandb()
    logger = WandbLogger(config)
    for iteration in (1, 2, 3, 2):
        logger.step(record(iteration, 1 / iteration, mfu=None))
    logger.evaluation(3, Validation(loss=0.5))
    logger.close()
sys.exit(exit_code(program))
"""


def wandb(mode: str, home: Path) -> subprocess.CompletedProcess:
    """A process that logs to Weights & Biases, without credentials."""
    pytest.importorskip("wandb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"WANDB_MODE": mode, "HOME": str(home), "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    return subprocess.run([sys.executable, "-c", WANDB], cwd=home, env=environment, capture_output=True, text=True)


def pieces(log: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB, pieces after 7 bytes each)."""
    at, whole = 7, b""  # behind the bytes that say whose it is
    while at < len(log):
        if 32768 - at % 32768 < 7:  # the rest of a block that no header fits
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", log[at : at + 7])
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def test_wandb_offline(tmp_path: Path) -> None:
    """What wandb kept on the disk, as its own messages: scalars beside their iteration, one that comes again too."""
    done = wandb("offline", tmp_path)
    assert done.returncode == 0, done.stderr
    from wandb.proto.wandb_internal_pb2 import Record

    kept = []
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    for data in pieces(file.read_bytes()):
        entry = Record()
        entry.ParseFromString(data)
        if entry.WhichOneof("record_type") == "run":
            assert (entry.run.project, entry.run.run_group) == ("p", "g")
        if entry.WhichOneof("record_type") == "history":
            kept.append({(item.key or item.nested_key[0]): json.loads(item.value_json) for item in entry.history.item})
    assert [(row["iteration"], row.get("lm loss")) for row in kept] == [
        *((i, 1 / i) for i in (1, 2, 3, 2)),
        (3, None),
    ]
    assert kept[-1]["lm loss validation"] == 0.5
    assert set(SCALARS) - {"mfu"} <= set(kept[0])


def test_wandb_without_credentials(tmp_path: Path) -> None:
    """Refused in one message before anything is built."""
    done = wandb("online", tmp_path)
    assert done.returncode == 2, done.stderr
    assert "error: the wandb block: nobody has logged in; log in with `wandb login`, or keep" in done.stderr
    assert "Traceback" not in done.stderr
