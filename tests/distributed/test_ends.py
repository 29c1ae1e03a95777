"""The end of a run: its exit code is its own, whatever the threads of libraries do while the interpreter ends.

`make test-faults` ends each engine under each launcher twenty times on a busy machine; `--ends N` says how often.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tests.distributed.test_launchers import command, environment

pytestmark = pytest.mark.faults

ENDS_LATE = """
import os, sys, time, torch, weakref
from datetime import timedelta
from tinyllama_mcore.parallel import launch

class Last:
    def __del__(self, sleep=time.sleep):
        sleep(6)  # other threads run on while the interpreter ends

def letting_go(_):
    open("letting go", "w").close()
    time.sleep(3)

torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=100))
torch.distributed.barrier()
tensor = torch.ones(4)
if torch.distributed.get_rank() == 0:
    sys.modules["last"] = Last()
    watch = weakref.ref(tensor, letting_go)
    work = torch.distributed.all_reduce(tensor, async_op=True)
    del tensor, work
    open("begun", "w").close()
    while not os.path.exists("letting go"):
        time.sleep(0.05)
    launch.leave(0)
while not os.path.exists("begun"):
    time.sleep(0.05)
torch.distributed.all_reduce(tensor)
time.sleep(60)
"""
"""The first rank ends while gloo's thread lets go of a tensor; a callback makes seconds of what takes microseconds."""


def test_a_thread_that_lets_go_of_a_tensor_at_the_end(tmp_path: Path) -> None:
    """The interpreter's own end aborts there (torch 2.13 with gloo); ours does not."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks.free_port())}
    script = tmp_path / "script.py"
    script.write_text(ENDS_LATE)
    job = [
        subprocess.Popen(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **place),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = job[0].communicate(timeout=200)[1]
    job[1].kill()
    job[1].communicate()
    assert job[0].returncode == 0, said[-2000:]


def _burn() -> None:
    while True:
        pass


@pytest.fixture(scope="module")
def busy() -> Iterator[None]:
    """Every core has something else to do."""
    burners = [multiprocessing.get_context("spawn").Process(target=_burn) for _ in range(os.cpu_count() or 1)]
    for burner in burners:
        burner.start()
    yield
    for burner in burners:
        burner.kill()
        burner.join()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case for each of `--ends`."""
    if "turn" in metafunc.fixturenames:
        metafunc.parametrize("turn", range(metafunc.config.getoption("--ends")))


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["zero1", "zero3", "fsdp"])
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "python"])
def test_every_end_is_0(turn: int, launcher: str, sharding: str, busy: None, corpus: list[str], tmp_path: Path) -> None:
    """Two ranks (one, for plain python) that train and save twice; the launcher says what its ranks said."""
    argv = [*flags(Mode(sharding=sharding), tmp_path, corpus), "--exit-interval", "2", "--save", "checkpoints"]
    done = subprocess.run(
        [*command(launcher), *argv, "--save-interval", "1", "--metrics-file", "metrics.jsonl"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "terminate called" not in done.stderr
    assert len(ranks.metrics(tmp_path / "metrics.jsonl")) == 2
