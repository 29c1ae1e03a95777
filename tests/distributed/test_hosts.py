"""Two hosts with a cable between them: cut off in the middle of a run, slow, and one of them gone for good.

Real launchers of two hosts, each in a network of its own (`hosts`). The cable lets so little through that an iteration
takes a few tenths of a second, so that there is a middle.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.distributed import ranks
from tests.distributed.conftest import flags, kept
from tests.distributed.hosts import NAMES, Hosts, why_not
from tests.distributed.layouts import Mode
from tests.distributed.recipe import BATCH
from tests.distributed.test_launchers import PROGRAMS, SCRIPT, environment
from tests.distributed.test_stopping import iterations, wait_for
from tinyllama_mcore.checkpoint import layout, manifest
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config import records
from tinyllama_mcore.planning.gpus import GPUS

pytestmark = [pytest.mark.faults, pytest.mark.layouts, pytest.mark.slow, pytest.mark.timeout(600)]

ZERO1 = Mode(sharding="zero1")
TIMEOUT_MINUTES = 0.1
RATE = "30mbit"
"""Of the cable."""
GONE_WITHIN_S = 60 * TIMEOUT_MINUTES + 15
"""After the cut: the watchdog's limit, its last words, and time for a busy machine."""
CUT_AT, SAVE_INTERVAL = 6, 4
"""Iterations."""
START_S = 120
"""In which two processes have come to an iteration, on a busy machine."""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts and a slow cable."""
    if reason := why_not(tmp_path):
        pytest.skip(f"no network of its own for a process: {reason}")
    with Hosts(tmp_path) as made:
        made.slow_down(RATE)
        yield made


def torchrun(host: int, home: Path, *more: str) -> list[str]:
    """On one of the hosts, which meet at the first one."""
    meet = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{NAMES[0]}:29500"]
    nodes = [] if "--nnodes" in more else ["--nnodes", "2"]
    return [str(PROGRAMS / "torchrun"), *nodes, *more, "--nproc_per_node", "1", *meet]


def deepspeed(host: int, home: Path, *more: str) -> list[str]:
    """On one of the hosts, as where there is no ssh between them."""
    (home / "hostfile").write_text("".join(f"{name} slots=1\n" for name in NAMES))
    where = ["--hostfile", str(home / "hostfile"), "--no_ssh", "--node_rank", str(host), "--master_addr", NAMES[0]]
    return [str(PROGRAMS / "deepspeed"), *where, *more]


VARIABLES = environment(OMP_NUM_THREADS="1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
"""Of launchers; with the second one a host can join later (torch 2.13: docs/howto/multi-node.md, fewer nodes)."""
LAUNCHERS = {"torchrun": torchrun, "deepspeed": deepspeed}


class Job:
    """A launcher on each of some hosts, and what they say."""

    def __init__(self, hosts: Hosts, home: Path) -> None:
        self._hosts, self._home = hosts, home
        self._launchers: list[subprocess.Popen[bytes]] = []

    def start(self, host: int, launcher: str, program: Sequence[str], *more: str) -> subprocess.Popen[bytes]:
        """One launcher, with more flags of its own; its output in `said`."""
        words = self._hosts.on(host, [*LAUNCHERS[launcher](host, self._home, *more), *program])
        with (self._home / f"{len(self._launchers) + 1}-{NAMES[host]}.log").open("wb") as log:
            begun = subprocess.Popen(words, cwd=self._home, env=VARIABLES, stdout=log, stderr=subprocess.STDOUT)
        self._launchers.append(begun)
        return begun

    def end(self) -> None:
        """Leave no launcher behind; ranks see that theirs is gone."""
        for launcher in self._launchers:
            launcher.kill()
            launcher.wait()

    def said(self, number: int) -> str:
        """By the `number`-th launcher that was started, counted from 1."""
        (log,) = self._home.glob(f"{number}-*.log")
        return log.read_text()


def ends(launcher: subprocess.Popen[bytes], limit: float) -> int:
    """Its exit code, within so many seconds."""
    return launcher.wait(limit)


@pytest.fixture
def started(hosts: Hosts, tmp_path: Path) -> Iterator[Job]:
    """Launchers that are not left behind."""
    job = Job(hosts, tmp_path)
    yield job
    job.end()


def argv_of(home: Path, corpus: list[str]) -> list[str]:
    """A run that is saved every few iterations."""
    limit = ("--distributed-timeout-minutes", str(TIMEOUT_MINUTES))
    return [SCRIPT, *flags(ZERO1, home, corpus), *kept(home), "--save-interval", str(SAVE_INTERVAL), *limit]


def losses(home: Path) -> list[float]:
    """Of each iteration."""
    return [record["lm_loss"] for record in ranks.metrics(home / "metrics.jsonl")]


def starts(home: Path) -> list[dict]:
    """What the metrics file says of each, a line that is being written left out."""
    path = home / "metrics.jsonl"
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event.get("event") == "start"]


def worlds(home: Path) -> list[int]:
    """Processes of each start."""
    return [event["world_size"] for event in starts(home)]


def exposed_ms(table: Path) -> tuple[float, float]:
    """Milliseconds of an iteration, and those of them that wait for communication, by --profile's table."""
    text = table.read_text()
    whole = re.search(r"profiler, ([\d,.]+) ms each", text)
    waits = re.search(r"exposed communication: ([\d,.]+) ms", text)
    assert whole and waits, text
    return float(whole[1].replace(",", "")), float(waits[1].replace(",", ""))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_host_is_cut_off(launcher: str, hosts: Hosts, started: Job, corpus: list[str], tmp_path: Path) -> None:
    """Both ends say so and leave with 1; plugged in and started again, the run is bit for bit one that was never cut.

    A slow cable is seen as exposed communication in a profile.
    """
    argv = argv_of(tmp_path, corpus)
    both = [started.start(host, launcher, argv) for host in (0, 1)]
    wait_for(lambda: iterations(tmp_path) >= CUT_AT, "iterations", START_S)
    hosts.cut()
    assert ends(both[0], GONE_WITHIN_S) == 1
    if launcher == "deepspeed":
        assert ends(both[1], GONE_WITHIN_S) == 1
    else:  # torchrun goes on asking the store of the other host: its ranks are gone, and it is ended
        wait_for(lambda: "it ends here" in started.said(2), "the other end", GONE_WITHIN_S)
        both[1].kill()
    for host, name in enumerate(NAMES):
        told = f"error: rank {host} ({name}, process "
        assert told in started.said(host + 1)
        assert "has made no progress for 6 s (--distributed-timeout-minutes), in iteration" in started.said(host + 1)
    hosts.mend()
    profiled = [*argv, "--profile", "10:11", "--profile-dir", str(tmp_path / "profile")]
    both = [started.start(host, launcher, profiled) for host in (0, 1)]
    assert [ends(each, START_S) for each in both] == [0, 0], started.said(3)[-3000:]
    assert f"iteration {SAVE_INTERVAL}" in started.said(3)
    whole, waiting = exposed_ms(tmp_path / "profile" / "iterations_10-11.txt")
    assert waiting > 0.6 * whole, (whole, waiting)

    unbroken = tmp_path / "unbroken"
    ranks.pretrain(argv_of(unbroken, corpus)[1:], world_size=2, logs=tmp_path / "logs")
    assert losses(tmp_path) == losses(unbroken)
    assert len(losses(tmp_path)) == BATCH["train_iters"]
    one, other = (CheckpointReader(layout.find(home / "checkpoints")) for home in (tmp_path, unbroken))
    assert one.manifest.state == other.manifest.state
    for key in sorted(one.keys()):
        assert torch.equal(one.tensor(key), other.tensor(key)), key


def test_the_job_goes_on_with_fewer_hosts_and_with_more(
    hosts: Hosts, started: Job, corpus: list[str], tmp_path: Path
) -> None:
    """`torchrun --nnodes 1:2` starts it again by itself where a host is lost, and where one comes, on the same samples.

    However long that takes: the run has no end of its own, and is asked to leave.
    """
    longer = ("--train-iters", "100000", "--global-batch-size", "32")
    argv = [*argv_of(tmp_path, corpus), *longer]
    more = ("--nnodes", "1:2", "--max-restarts", "3", "--rdzv_conf", "last_call_timeout=5")
    both = [started.start(host, "torchrun", argv, *more) for host in (0, 1)]
    wait_for(lambda: iterations(tmp_path) >= CUT_AT, "iterations", START_S)
    hosts.cut()
    wait_for(lambda: worlds(tmp_path) == [2, 1], "one host", GONE_WITHIN_S + START_S)
    both[1].kill()
    hosts.mend()
    again = started.start(1, "torchrun", argv, *more)
    wait_for(lambda: worlds(tmp_path) == [2, 1, 2], "the host that came back", START_S)
    done = iterations(tmp_path)
    wait_for(lambda: iterations(tmp_path) > done + 2, "iterations of both", START_S)
    both[0].send_signal(signal.SIGTERM)
    for each in (both[0], again):
        ends(each, 60)
    done = iterations(tmp_path)
    assert manifest.read(layout.find(tmp_path / "checkpoints")).state.iteration == done
    lost = [event["lost_iterations"] for event in starts(tmp_path)]
    assert lost[1] < SAVE_INTERVAL and lost[2] == 0

    unbroken = tmp_path / "unbroken"
    ranks.pretrain(
        [*argv_of(unbroken, corpus)[1:], *longer, "--exit-interval", str(done)], world_size=2, logs=tmp_path / "logs"
    )
    one, other = (ranks.metrics(home / "metrics.jsonl") for home in (tmp_path, unbroken))
    for key in ("iteration", "consumed_samples", "consumed_by_dataset", "global_batch_size"):
        assert [record[key] for record in one] == [record[key] for record in other]
    assert losses(tmp_path) == pytest.approx(losses(unbroken), rel=1e-5)


def test_preflight_sees_hosts_and_their_cable(hosts: Hosts, started: Job, tmp_path: Path) -> None:
    """Two hosts with addresses that reach each other, and a sum at the cable's speed, where more was promised."""
    row = records.to_plain(replace(GPUS["h100-80gb"], name="cabled", network=1e9 / 8))
    (tmp_path / "row.json").write_text(json.dumps(row))
    tool = [str(ranks.CHECKOUT / "tools" / "preflight.py"), "--save", str(tmp_path / "save"), "--free-gib", "0.1"]
    both = [started.start(host, "torchrun", [*tool, "--gpu", str(tmp_path / "row.json")]) for host in (0, 1)]
    assert [ends(each, START_S) for each in both] == [1, 1]
    rows = {line[9:25].strip(): line for line in started.said(1).splitlines()}
    assert rows["meeting"].endswith("here (rank 0), there (rank 1)")
    assert rows["address"] == f"ok       address          here {hosts.addresses[0]}, there {hosts.addresses[1]}"
    assert rows["shared directory"].startswith("ok       shared directory 2 host(s) see one")
    assert rows["all-reduce"].startswith("problem") and "0.00" in rows["all-reduce"]
    assert rows["all-reduce"].endswith("% of what the planner expects of cabled")
    assert [line for line in rows.values() if line.startswith("problem ")] == [rows["all-reduce"]]
