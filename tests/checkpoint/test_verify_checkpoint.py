"""The command that reads every byte: a line a checkpoint, and an exit code that a script can use."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.checkpoint.test_checkpoint import save
from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.config.paths import MANIFEST

REPOSITORY = Path(__file__).resolve().parents[2]


def verify(python: Path, directory: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command."""
    command = [str(python), "tools/verify_checkpoint.py", "--load", str(directory), *arguments]
    environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def test_each_checkpoint_has_a_line(python: Path, tmp_path: Path) -> None:
    """0 where all are whole; 1 where one is not, naming its file; 2 for what is not there."""
    for iteration in (1, 2, 3):
        save(tmp_path, iteration)
    sound = verify(python, tmp_path)
    assert (sound.returncode, len(sound.stdout.splitlines())) == (0, 3), sound.stderr
    assert all("whole" in line for line in sound.stdout.splitlines())
    shard = next(layout.folder(tmp_path, 2).glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (layout.folder(tmp_path, 3) / MANIFEST).write_bytes(b"{")
    told = verify(python, tmp_path)
    lines = told.stdout.splitlines()
    assert told.returncode == 1
    assert "whole" in lines[0]
    assert f"{shard} does not match its checksum" in lines[1]
    assert "manifest.json is not a manifest" in lines[2]
    assert verify(python, tmp_path, "--iteration", "1").returncode == 0
    missing = verify(python, tmp_path, "--iteration", "4")
    assert (missing.returncode, "iteration 4" in missing.stderr) == (2, True)
    assert "Traceback" not in missing.stderr
