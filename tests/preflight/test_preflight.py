"""`tinyllama-preflight`: real ranks over gloo, on one of which something is wrong; the table has to say what and where.

The second rank takes itself for another host. What nobody here has, a GPU, is judged from what ranks would have seen.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.distributed import ranks
from tests.distributed.test_launchers import PROGRAMS, execute
from tinyllama_mcore.commands import preflight
from tinyllama_mcore.config import cli, flags
from tinyllama_mcore.config.errors import ConfigError, RunFailed
from tinyllama_mcore.parallel import meeting
from tinyllama_mcore.parallel.launchers import Launch, this_process
from tinyllama_mcore.planning.gpus import GIB, GPUS
from tinyllama_mcore.preflight import between, machines, session
from tinyllama_mcore.preflight.check import OK, PROBLEM, WARNING, Asked, Check, Finding, Seen
from tinyllama_mcore.preflight.checks import CHECKS

ASKED = Asked(save=Path("save"), data=(("--data-path", "text"),), gpu=None, free_gib=0.1, patience_s=20)
SCRIPT = str(ranks.CHECKOUT / "tools" / "preflight.py")
Patch = pytest.MonkeyPatch


def other_torch(patch: Patch) -> None:
    """The metadata of another version are found first."""
    (made := Path("planted/torch-9.9.dist-info").resolve()).mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    patch.syspath_prepend(made.parent)


def clock_ahead(seconds: float) -> Callable[[Patch], None]:
    """So many seconds."""
    now = time.time
    return lambda patch: patch.setattr(time, "time", lambda: now() + seconds)


def full_disk(patch: Patch) -> None:
    """No file grows beyond a megabyte."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))


def another_file_system(patch: Patch) -> None:
    """Equal paths, other files."""
    patch.chdir("../others")


def other_tokens(patch: Patch) -> None:
    """One bit of them, in files of this host's own."""
    tokens = bytearray(Path("text.bin").read_bytes())
    tokens[0] ^= 1
    (own := Path("own").resolve()).mkdir()
    for ending in ("idx", "json"):
        shutil.copy(f"text.{ending}", own)
    (own / "text.bin").write_bytes(tokens)
    (own / "save").symlink_to(Path("save").resolve())
    patch.chdir(own)


def missing_data(patch: Patch) -> None:
    """The directory of checkpoints is there, and nothing else."""
    (own := Path("empty").resolve()).mkdir(exist_ok=True)
    if not (own / "save").exists():
        (own / "save").symlink_to(Path("save").resolve())
    patch.chdir(own)


def no_code(patch: Patch) -> None:
    """The blend that comes later is not on this host."""
    missing_data(patch)
    for ending in ("bin", "idx", "json"):
        Path(f"text.{ending}").symlink_to(f"../text.{ending}")


def own_name_is_loopback(patch: Patch) -> None:
    """As Debian's installer has it in /etc/hosts."""
    patch.delenv("GLOO_SOCKET_IFNAME")
    patch.setattr(meeting.socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("127.0.1.1", 0))])


def dies(patch: Patch) -> None:
    """The process ends in the middle of a check."""
    object.__setattr__(next(check for check in CHECKS if check.name == "GPU"), "look", lambda here: os._exit(9))


def nothing(patch: Patch) -> None:
    """All is well."""


class Case(NamedTuple):
    """What is planted on the second rank, and the one row that has to say so."""

    plant: Callable[[Patch], None]
    row: str
    level: str = PROBLEM
    says: str = ""
    asked: Asked = ASKED


CASES = (
    Case(nothing, "meeting", OK, "2 ranks at 127.0.0.1:"),
    Case(other_torch, "versions", says="rank 1 (there): torch 9.9, where rank 0 has 2."),
    Case(clock_ahead(100), "clock", says="there: its clock is 100.0 s ahead of that of here"),
    Case(clock_ahead(-5), "clock", WARNING, "there: its clock is 5.0 s behind that of here"),
    Case(full_disk, "disk", says="rank 1 (there): [Errno 27] File too large"),
    Case(
        nothing, "disk", says="GiB free at save: 1e+09 are asked for (--free-gib)", asked=replace(ASKED, free_gib=1e9)
    ),
    Case(another_file_system, "shared directory", says="rank 1 (there): what here writes to save is not seen here"),
    Case(other_tokens, "data", says="rank 1 (there): text: tokens differ from those on here"),
    Case(missing_data, "data", says="rank 1 (there): --data-path text: neither text.bin nor text.idx exists"),
    Case(
        no_code,
        "data",
        says="rank 1 (there): --data-path-from code: neither code.bin nor code.idx exists",
        asked=replace(ASKED, data=(("--data-path", "text"), ("--data-path-from", "code"))),
    ),
    Case(own_name_is_loopback, "address", WARNING, "rank 1 (there): the host's own name means 127.0.1.1"),
    Case(
        nothing,
        "all-reduce",
        says="% of what the planner expects of h100-80gb",
        asked=replace(ASKED, gpu=replace(GPUS["h100-80gb"], nvlink=1e15)),
    ),
    Case(dies, "GPU", says="rank 1 (there): no answer"),
)


def try_all(home: Path) -> int:
    """Every case in turn, on one set of ranks; what the first one says goes to a file for each."""
    place = this_process()
    host = "there" if place.rank else "here"
    for number, case in enumerate(CASES):
        with Patch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: host)
            patch.setenv("GLOO_SOCKET_IFNAME", "lo")
            patch.setattr(between, "VISIBLE_S", 0.5)
            patch.setattr(session, "LONGER_S", 0.5)
            patch.chdir(home / "files")
            if place.rank:
                case.plant(patch)
            said: list[str] = []
            code = session.run(CHECKS, case.asked, place, said.append)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            if place.rank == 0:
                (home / f"{number}.txt").write_text("\n".join((*said, f"exit code {code}")))
    return 0


def test_each_fault_is_named_by_its_row(corpus: list[str], tmp_path: Path) -> None:
    """With rank and host, and no other row finds anything; without a fault none does."""
    for home in ("files", "others"):
        (tmp_path / home / "save").mkdir(parents=True)
        for ending in ("bin", "idx", "json"):
            for name, prefix in (("text", corpus[1]), ("code", corpus[3])):
                shutil.copy(f"{prefix}.{ending}", tmp_path / home / f"{name}.{ending}")
    quick = [case for case in CASES if case.plant is not dies]
    assert ranks.run(2, try_all, tmp_path, logs=tmp_path / "logs", timeout=200) == [0, 9], (
        tmp_path / "logs" / "rank0.log"
    ).read_text()[-3000:]
    for number, case in enumerate(CASES):
        *rows, verdict, code = (tmp_path / f"{number}.txt").read_text().splitlines()
        row = next((row for row in rows if row.startswith(f"{case.level:8} {case.row}")), "")
        found = [row for row in rows if row.startswith((PROBLEM, WARNING))]
        assert found == ([row] if case.level != OK else []), case
        assert case.says in row, case
        assert code == f"exit code {int(case.level == PROBLEM)}", case
        assert verdict.startswith("problems found" if case.level == PROBLEM else "no problem found"), case
        if case in quick:
            assert len([line for line in rows if not line.startswith(" ")]) == 1 + len(CHECKS), case
        else:
            assert rows[-1].strip() == "what follows was not tried"
    assert list((tmp_path / "files" / "save").iterdir()) == []


def place_of_two(rank: int) -> Launch:
    """Of one of two processes."""
    return Launch(rank=rank, world_size=2, local_rank=rank, local_size=2)


@pytest.fixture
def nobody(monkeypatch: Patch) -> str:
    """Where a job would meet, and nobody is."""
    port = str(ranks.free_port())
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    return f"127.0.0.1:{port}"


def test_a_rank_that_does_not_come_is_named(nobody: str) -> None:
    """By the first one, which tries nothing more."""
    said: list[str] = []
    assert session.run(CHECKS, replace(ASKED, patience_s=1), place_of_two(0), said.append) == 1
    (row, _) = said
    assert row.startswith(f"problem  meeting          1 of 2 ranks came to {nobody}: ")
    assert row.endswith("missing: rank 1")


def test_an_address_that_cannot_be_reached_is_named(nobody: str) -> None:
    """By the rank that tried."""
    with pytest.raises(
        RunFailed, match=rf"rank 1 \(.*\) could not reach MASTER_ADDR:MASTER_PORT, {nobody}, within 1 s"
    ):
        session.run(CHECKS, replace(ASKED, patience_s=1), place_of_two(1), print)


ALONE = Launch(rank=0, world_size=1, local_rank=0, local_size=1)


def test_a_check_that_does_not_end_is_a_finding() -> None:
    """A file system that hangs, for one."""

    def judge(seen: list[Seen], asked: Asked) -> Finding:
        raise AssertionError("nothing was seen")

    said: list[str] = []
    stuck = Check(name="stuck", look=lambda here: time.sleep(3), judge=judge)
    assert session.run([stuck], replace(ASKED, patience_s=0.2), ALONE, said.append) == 1
    assert said[1].startswith("problem  stuck            rank 0 (")
    assert said[1].endswith("did not end within 0.2 s")


def gpus(*facts: dict) -> Finding:
    """What is said of ranks that have seen these, two to a host."""
    sound = {"name": "NVIDIA H100 80GB HBM3", "free": 79 * GIB, "total": 80 * GIB, "right": True}
    seen = [Seen(rank=rank, host=f"node{rank // 2}", fact={**sound, **fact}) for rank, fact in enumerate(facts)]
    return machines.judge_gpu(seen, ASKED)


def test_gpus_are_judged_together() -> None:
    """Equal, free and sound; ranks of one host that see the same are told together."""
    assert gpus({}, {}) == Finding(level=OK, words="2 x NVIDIA H100 80GB HBM3, free and sound")
    taken = gpus({}, {}, {"free": 20 * GIB}, {"free": 20 * GIB})
    assert taken == Finding(
        level=PROBLEM, words="ranks 2-3 (node1): 20.0 of 80.0 GiB free: another process has the rest"
    )
    assert gpus({}, {"right": False}).words == "rank 1 (node0): a product of ones is wrong: the GPU is not sound"
    assert gpus({}, {"name": ""}).words == "rank 1 (node0): no GPU, where rank 0 has NVIDIA H100 80GB HBM3"


def test_two_hosts_that_mean_the_loopback_are_a_problem() -> None:
    """Neither can be reached by the other."""

    def judged(*facts: dict) -> Finding:
        return between.judge_address([Seen(rank=r, host=f"node{r}", fact=fact) for r, fact in enumerate(facts)], ASKED)

    nothing_said = {"interface": None, "addresses": []}
    loopback = {"interface": None, "addresses": ["127.0.1.1", "::1"]}
    sound, told = {"interface": None, "addresses": ["10.0.0.3"]}, {"interface": "eth0", "addresses": ["127.0.1.1"]}
    assert judged(sound, told) == Finding(level=OK, words="node0 10.0.0.3, node1 eth0")
    assert judged(sound, loopback).level == WARNING
    found = judged(loopback, sound, nothing_said)
    assert found.level == PROBLEM
    assert [line.split(", where")[0] for line in found.words.splitlines()] == [
        "rank 0 (node0): the host's own name means 127.0.1.1, ::1",
        "rank 2 (node2): the host's own name means nothing",
    ]


@pytest.mark.parametrize(
    ("name", "gib", "row"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80gb"),
        ("NVIDIA GeForce RTX 4090", 23.5, None),
    ],
)
def test_the_planners_row_is_that_of_the_gpu(name: str, gib: float, row: str | None) -> None:
    """By the name that torch tells, and by memory among several of it."""
    found = between.row_of(name, int(gib * GIB))
    assert (found.name if found else None) == row


@pytest.mark.slow
def test_it_is_started_as_the_trainer_is(tmp_path: Path) -> None:
    """By both launchers, with one table; a mistake of the user's is told once, with exit code 2."""
    words = [SCRIPT, "--save", str(tmp_path / "save"), "--free-gib", "0.1"]
    for launcher in ("torchrun", "deepspeed"):
        ranks_flag = {"torchrun": "--nproc_per_node", "deepspeed": "--num_gpus"}[launcher]
        started = [str(PROGRAMS / launcher), ranks_flag, "2", "--master_port", str(ranks.free_port())]
        done = execute([*started, *words], tmp_path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert done.stdout.count("no problem found") == done.stdout.count("all-reduce") == 1
    done = execute([*started[:-1], str(ranks.free_port()), *words, "--gpu", "h1000"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: --gpu h1000 is not in the table; did you mean") == 1


def test_every_flag_of_a_run_that_names_data_is_looked_at() -> None:
    """Later blends and what is validated on too, each dataset once."""
    words = "--data-path 0.5 a 0.5 b --data-path-from 10 0.3 b 0.7 c --data-path-from 20 d --valid-data-path v"
    found = cli.datasets(preflight.parse(words.split()))
    of = {"--data-path": "ab", "--data-path-from": "cd", "--valid-data-path": "v"}
    assert found == tuple((flag, prefix) for flag, prefixes in of.items() for prefix in prefixes)
    with pytest.raises(ConfigError, match="--data-path-from c: after how many iterations"):
        cli.datasets(preflight.parse(["--data-path", "a", "--data-path-from", "c"]))
    flags_of_data = {flag.name for flag in flags.flags() if flag.target.endswith(("blend", "blends"))}
    assert flags_of_data == set(of)
