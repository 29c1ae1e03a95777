"""Runs each row as a process of its own, so that neither memory nor compiled code of one is in the next.

What a process prints goes to files beside the result. A row that fails says so in the table and stops no other.
Neighbours: `ours`, `peers` and `floor` are what is run, `report` makes the table.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tinyllama_mcore.benchmarking import ours, peers
from tinyllama_mcore.benchmarking.workload import FP32, MIXED, Measurement, Workload
from tinyllama_mcore.config import records
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.strict_json import did_you_mean

KEYS = ("floor", "ours", *peers.PEERS)
"""What --rows takes."""
CONFIGS = ("zero1", "zero2", "zero3", "fsdp")
"""This trainer's rows where --config names none."""
_RAISED = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:[\w.]+(?:Error|Exception|Interrupt|Exit)\b|error: ).*)$")
_TORCHRUN = "torch.distributed.elastic"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One process to be started."""

    before: Measurement
    """What is known of the row before it runs."""
    arguments: tuple[str, ...] = ()
    """After `python`, or after `torchrun`; none where the row has a problem already."""
    under_torchrun: bool = False
    """Whether torchrun starts it, as many times as there are GPUs."""
    metrics: Path | None = None
    """The metrics file that is read afterwards; None: the process prints its Measurement."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is to be measured."""

    workload: Workload
    keys: tuple[str, ...]
    """Some of KEYS."""
    configs: tuple[ours.Ours, ...]
    processes: int
    """GPUs of a row; 1 on a CPU."""
    logs: Path
    """Directory for what the processes print."""
    timeout_minutes: float
    """After which a row is given up."""


def keys_of(text: str) -> tuple[str, ...]:
    """`floor,ours` as keys, in the order of the table.

    Raises:
        ConfigError: a key is unknown, or none is given.
    """
    given = [word.strip() for word in text.split(",") if word.strip()]
    for word in given:
        if word not in KEYS:
            raise ConfigError(f"--rows {word}: no such row{did_you_mean(word, KEYS)}")
    if not given:
        raise ConfigError(f"--rows names no row; rows: {', '.join(KEYS)}")
    return tuple(key for key in KEYS if key in given)


def prepare(plan: Plan) -> list[Row]:
    """Every row in the order of the table.

    Raises:
        ConfigError: the trainer would refuse one of its rows.
    """
    return [row for key in plan.keys for row in _rows(key, plan)]


def _rows(key: str, plan: Plan) -> Iterator[Row]:
    workload = plan.workload
    spelt = json.dumps(records.to_plain(workload))
    if key == "floor":
        before = Measurement(name="floor", kind="floor", precision=MIXED if workload.on_gpu else FP32)
        yield Row(before=before, arguments=("-m", "tinyllama_mcore.benchmarking.floor", spelt))
    elif key == "ours":
        for index, each in enumerate(plan.configs):
            before = ours.row(each, ours.check(each, workload, plan.processes))
            metrics = plan.logs / f"metrics_{index}_{Path(each.words[0]).stem}.jsonl"
            started = ours.command(each, workload, plan.processes, metrics)
            yield Row(before=before, arguments=tuple(started), under_torchrun=True, metrics=metrics)
    else:
        before = peers.row(key, on_gpu=workload.on_gpu)
        problem = peers.obstacle(key, on_gpu=workload.on_gpu, processes=plan.processes)
        arguments = () if problem else ("-m", "tinyllama_mcore.benchmarking.peers", key, spelt)
        yield Row(before=replace(before, problem=problem), arguments=arguments, under_torchrun=plan.processes > 1)


def _torchrun(processes: int) -> tuple[str, ...]:
    """`torchrun` of this interpreter. It takes a free port and keeps it; one looked for first may be taken since."""
    where = ("--standalone", "--local_addr", "127.0.0.1")
    return ("-m", "torch.distributed.run", *where, "--nproc_per_node", str(processes))


def measure(row: Row, number: int, plan: Plan) -> Measurement:
    """Run the row to its end, however it ends."""
    if not row.arguments:
        return row.before
    arguments = (*(_torchrun(plan.processes) if row.under_torchrun else ()), *row.arguments)
    out, err = (plan.logs / f"row_{number}.{kind}" for kind in ("out", "err"))
    if row.metrics is not None:
        row.metrics.unlink(missing_ok=True)
    before = replace(row.before, command=shlex.join(["python", *arguments]))
    code = _run([sys.executable, *arguments], out, err, plan.timeout_minutes * 60)
    if code is None:
        return replace(before, problem=f"given up after {plan.timeout_minutes:g} minutes")
    if code:
        return replace(before, problem=why(f"{out.read_text()}\n{err.read_text()}") or f"exit code {code}")
    try:
        if row.metrics is not None:
            return ours.result(before, plan.workload, row.metrics)
        return replace(printed(out.read_text()), command=before.command)
    except (ConfigError, ValueError, KeyError) as error:
        return replace(before, problem=str(error))


def measure_all(rows: list[Row], plan: Plan, told: Callable[[list[Measurement]], None]) -> list[Measurement]:
    """Every row, one after the other; after each, `told` gets what is known so far."""
    found: list[Measurement] = []
    for number, row in enumerate(rows):
        print(f"[{number + 1}/{len(rows)}] {row.before.name}", file=sys.stderr, flush=True)
        found.append(measure(row, number, plan))
        print(f"    {found[-1].problem or f'{found[-1].tokens_per_s:,.0f} tokens/s'}", file=sys.stderr, flush=True)
        told(found)
    return found


def _run(command: list[str], out: Path, err: Path, timeout: float) -> int | None:
    """Exit code of a process, None where it took longer than `timeout` seconds; its children end with it."""
    with out.open("wb") as standard, err.open("wb") as errors:
        process = subprocess.Popen(command, stdout=standard, stderr=errors, start_new_session=True)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def printed(text: str) -> Measurement:
    """The Measurement that a process printed as its last line of JSON.

    Raises:
        ValueError: there is none.
    """
    for line in reversed(text.splitlines()):
        if line.startswith("{") and '"tokens_per_s"' in line:
            return records.from_plain(Measurement, json.loads(line), "measurement")
    raise ValueError("the process ended well and printed no measurement")


def why(text: str) -> str:
    """The line that says why a process failed: its last exception, not the launcher's; else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [found[1] for line in lines if _TORCHRUN not in line and (found := _RAISED.match(line))]
    return (raised or lines or [""])[-1][:300]
