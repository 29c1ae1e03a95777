"""examples/launch/: each file's own command is run here, on one node, as its launcher would; its flags are ours.

Programs that are not here (srun, scontrol) are stood in for by scripts that do what is relied on; a cluster's queue,
Kubernetes and SkyPilot only read these files, and what they read is parsed. Launchers and ranks are their own programs,
forked with their imports made.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.distributed import ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tests.distributed.test_launchers import environment
from tests.distributed.test_stopping import iterations, wait_for
from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.config import flags as trainer

FILES = ranks.CHECKOUT / "examples" / "launch"
SCRIPTS = ("torchrun.sh", "deepspeed.sh", "slurm.sbatch")
SRUN = """#!/bin/bash
# One task of a step; a signal to srun reaches it.
while [[ $1 == --* ]]; do shift; done
exec env SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> asked; fi
"""


def script(name: str) -> str:
    """What a shell is given: a script itself, or what stands in a YAML file."""
    text = (FILES / name).read_text()
    if name in SCRIPTS:
        return text
    read = yaml.safe_load(text)
    if name == "skypilot.yaml":
        return read["run"]
    (job,) = read["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    shell, option, command = container["command"]
    assert (shell, option) == ("bash", "-c")
    return command


ALL = (*SCRIPTS, "jobset.yaml", "skypilot.yaml")


def test_every_file_is_looked_at() -> None:
    """And the hostfile is DeepSpeed's."""
    assert sorted(path.name for path in FILES.iterdir()) == sorted((*ALL, "hostfile"))
    assert all(re.fullmatch(r"\S+ slots=\d+", line) for line in (FILES / "hostfile").read_text().splitlines())


@pytest.mark.parametrize("name", ALL)
def test_shells_and_our_parser_read_it(name: str) -> None:
    """`bash -n`; the flags of the trainer's within it are the trainer's."""
    text = script(name)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    joined = text.replace("\\\n", " ")
    (line,) = re.findall(r"tinyllama_mcore pretrain (.*)", joined)
    words = [word for word in shlex.split(line.removesuffix(" &")) if word != "$@"]
    assert trainer.read(words).deepspeed_config == "zero1"


def test_the_set_of_jobs_has_one_address_and_one_number_of_nodes() -> None:
    """Names of a JobSet's pods are SET-JOB-INDEX-POD.SET; nodes are stood for by pods."""
    read = yaml.safe_load((FILES / "jobset.yaml").read_text())
    (job,) = read["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    given = {each["name"]: each["value"] for each in container["env"]}
    name = read["metadata"]["name"]
    assert given["HEAD"] == f"{name}-{job['name']}-0-0.{name}"
    assert given["NODES"] == str(pods["parallelism"]) == str(pods["completions"])
    assert given["GPUS"] == container["resources"]["limits"]["nvidia.com/gpu"]
    volumes = {volume["name"] for volume in pods["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def small_run(home: Path, corpus: list[str]) -> list[str]:
    """Flags of a run of a few seconds, but for the JSON, which the files name."""
    argv = list(flags(Mode(sharding="zero1"), home, corpus))
    at = argv.index("--deepspeed_config")
    return [*argv[:at], *argv[at + 2 :], "--metrics-file", str(home / "metrics.jsonl")]


def start(name: str, python: Path, home: Path, more: list[str], **extra: str) -> subprocess.Popen[str]:
    """A file's script under bash, with more flags of the trainer's."""
    text = script(name)
    if name not in SCRIPTS:
        text = text.rstrip() + ' "$@"\n'
    (home / "script").write_text(text.replace("29500", str(ranks.free_port())))
    words = ["bash", str(home / "script"), *more]
    path = f"{home}:{python.parent}:{environment()['PATH']}"
    variables = environment(OMP_NUM_THREADS="1", PATH=path, **extra)
    return subprocess.Popen(
        words,
        cwd=home,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(job: subprocess.Popen[str], limit: float) -> str:
    """What it said, once it has ended; it and what it started are killed where it does not."""
    try:
        return job.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name != "slurm.sbatch"])
def test_it_trains_on_one_node(name: str, python: Path, corpus: list[str], tmp_path: Path) -> None:
    """Two iterations in two processes, saved."""
    (tmp_path / "hostfile").write_text("localhost slots=2\n")
    here = {"HEAD": "127.0.0.1", "GPUS": "2", "NODES": "1", "NODE_RANK": "0", "HOSTFILE": str(tmp_path / "hostfile")}
    kubernetes = {"JOB_COMPLETION_INDEX": "0", "DATA": corpus[1], "SAVE": str(tmp_path / "save")}
    sky = {"NUM_NODES": "1", "NUM_GPUS_PER_NODE": "2", "NODE_RANK": "0", "NODE_IPS": "127.0.0.1"}
    variables = {**here, **kubernetes, **{f"SKYPILOT_{key}": value for key, value in sky.items()}}
    more = [*small_run(tmp_path, corpus), "--exit-interval", "2", "--save", str(tmp_path / "save")]
    job = start(name, python, tmp_path, more, **variables)
    said = end(job, 200)
    assert job.returncode == 0, said[-3000:]
    assert "world        2 = tensor parallel 1 x data parallel 2" in said
    assert layout.iterations(tmp_path / "save") == [2]


@pytest.mark.slow
def test_slurm_saves_before_the_time_limit_and_queues_again(python: Path, corpus: list[str], tmp_path: Path) -> None:
    """SIGUSR1 to the script, as --signal=B:USR1 sends it: saved, 0, and back to the queue; not where it is done."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here"}
    save = ["--save", str(tmp_path / "save")]
    argv = [*small_run(tmp_path, corpus), *save, "--train-iters", "100000"]
    job = start("slurm.sbatch", python, tmp_path, argv, **slurm)
    wait_for(lambda: iterations(tmp_path) > 2, "iterations", 120)
    job.send_signal(signal.SIGUSR1)
    said = end(job, 60)
    assert job.returncode == 0, said[-3000:]
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    (done,) = layout.iterations(tmp_path / "save")
    assert done == iterations(tmp_path)
    job = start("slurm.sbatch", python, tmp_path, [*argv, "--exit-interval", str(done + 1)], **slurm)
    said = end(job, 120)
    assert job.returncode == 0 and f"iteration {done}" in said, said[-3000:]
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
