"""What a profile tells: idle time, communication that nothing hides, kinds; and the files of a real run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tinyllama_mcore.training import profile

SPANS = [
    profile.Span(name=name, start=1000 * start, end=1000 * end, own=1000 * (end - start))
    for name, start, end in (
        ("nvjet_gemm", 0.0, 4.0),
        ("add", 1.0, 2.0),
        ("ncclDevKernel", 3.0, 6.0),
        ("_adamw", 8.0, 10.0),
    )
]


def test_overlapping_kernels_are_counted_once() -> None:
    """6 and 2 ms of 10 are busy; 2 of 3 ms of communication lie beside nothing. Per iteration, of two."""
    assert profile.busy(SPANS) == 8000.0
    text = "\n".join(profile.lines([SPANS, []], synchronizations=3, seconds=0.04))
    assert "2 iteration(s) under the profiler, 20.0 ms each" in text
    assert "last: 5.0 ms, idle 1.0 ms" in text
    assert "exposed communication: 1.0 ms" in text
    assert "host synchronizations: 1.5" in text
    assert f"{2:10.2f} {0.5:9g} matrix products" in text


def test_waits_of_the_profiler_are_not_the_steps() -> None:
    """As torch tells them on a GPU: one of the step's, then the profiler's own before and after its end."""
    told = (("cudaEventSynchronize", 3), (profile.END, 5), ("cudaDeviceSynchronize", 6), ("cudaDeviceSynchronize", 9))
    events = [SimpleNamespace(name=name, time_range=SimpleNamespace(start=start)) for name, start in told]
    assert profile._waits(events) == 1
    assert profile._waits(events[:1]) == 1


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_qqtst_128x128_128x6_1x2_h_bz_ovscale_TNT", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention"),
        ("_float8_rows", "casts to float8"),
        ("_swiglu_backward", "SwiGLU"),
        ("_add_rms_norm", "norms"),
        ("_split_rotate", "RoPE"),
        ("_cross_entropy_backward", "loss"),
        ("_adamw", "optimizer"),
        ("ncclDevKernel_ReduceScatter_Sum_f32", "communication"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and clearing"),
        ("something else", "others"),
    ],
)
def test_kernels_by_kind(kernel: str, kind: str) -> None:
    """Names as an H100 showed them."""
    assert profile.kind_of(kernel) == kind


def test_a_run_is_profiled_and_learns_the_same(corpus: list[str], tmp_path: Path) -> None:
    """Iterations 2 and 3 of five; losses are those of a run without a profile, which no other run may write over."""
    mode, folder = Mode(sharding="zero1", dp=1), tmp_path / "profile"
    losses = {}
    for name, more in (("plain", ()), ("profiled", ("--profile", "2:3", "--profile-dir", str(folder)))):
        home = tmp_path / name
        words = [
            *flags(mode, home, corpus),
            "--exit-interval",
            "5",
            "--metrics-file",
            str(home / "metrics.jsonl"),
            *more,
        ]
        ranks.pretrain(words, world_size=1, logs=home / "logs")
        losses[name] = [record["lm_loss"] for record in ranks.metrics(home / "metrics.jsonl")]
    assert losses["plain"] == losses["profiled"]
    table = (folder / "iterations_2-3.txt").read_text()
    assert "2 iteration(s) under the profiler" in table
    assert "matrix products" in table
    for iteration in (2, 3):
        with gzip.open(folder / f"iteration_{iteration}.trace.json.gz") as trace:
            assert json.load(trace)["traceEvents"]
    again = [*words, "--metrics-file", str(tmp_path / "other.jsonl")]
    codes = ranks.run(1, ranks._pretrain, again, logs=tmp_path / "again", timeout=100)
    assert codes == [2]
    assert "holds files that another run wrote" in (tmp_path / "again" / "rank0.log").read_text()


def test_a_run_that_leaves_early_keeps_what_it_profiled(corpus: list[str], tmp_path: Path) -> None:
    """Asked for iterations 2 to 9 and left after 4: three are told."""
    folder = tmp_path / "profile"
    words = [*flags(Mode(sharding="fsdp", dp=1), tmp_path, corpus), "--exit-interval", "4"]
    ranks.pretrain([*words, "--profile", "2:9", "--profile-dir", str(folder)], world_size=1, logs=tmp_path / "logs")
    assert "3 iteration(s) under the profiler" in (folder / "iterations_2-4.txt").read_text()
