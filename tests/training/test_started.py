"""Versions that were run: what setup.py allows ends with them, and a start tells of others."""

from __future__ import annotations

import re
from pathlib import Path

from tinyllama_mcore.training import started

REPOSITORY = Path(__file__).resolve().parents[2]


def test_bounds_are_the_next_minor_versions() -> None:
    """Those of constraints.txt are among the versions that were run; setup.py takes none after the newest of them."""
    setup, pins = ((REPOSITORY / name).read_text() for name in ("setup.py", "constraints.txt"))
    for name, run in started.RUN.items():
        (bound,) = re.findall(rf'"{name}>=[\d.]+,<(\d+\.\d+)"', setup)
        major, minor = bound.split(".")
        assert f"{major}.{int(minor) - 1}" == run[-1]
        (pin,) = re.findall(rf"^{name}==(\d+\.\d+)", pins, flags=re.MULTILINE)
        assert pin in run


def test_other_versions_are_told() -> None:
    """Also one between two that were run; not a patch or a build of one, nor one that is not known."""
    told = list(started.untried({"torch": "2.12.1", "deepspeed": "0.20.0", "megatron-core": "0.19.4"}))
    assert told == [
        "torch 2.12.1 was not run with this trainer; run were 2.11, 2.13",
        "deepspeed 0.20.0 was not run with this trainer; run were 0.19",
    ]
    assert not list(started.untried({"torch": "2.13.0+cpu", "deepspeed": None, "megatron-core": "0.16.1"}))
    assert not list(started.untried(started.environment()))
