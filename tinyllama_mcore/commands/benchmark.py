"""How fast this trainer is beside its peers and the floor, in one run on one machine: a table, a JSON file, a figure.

    tinyllama-benchmark --output runs/benchmark
    tinyllama-benchmark --output runs/two --nproc-per-node 2 --rows floor,ours,zero1-hf-liger \
        --config zero1 --config "zero1 --compile" --profile

Every row trains the same model on the same batches with the same optimizer, as a process of its own. Without a GPU all
is done in small. See docs/howto/benchmark.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyllama_mcore.benchmarking import ours, report, rows
from tinyllama_mcore.benchmarking.workload import Measurement, Workload, workload_of
from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.flags import Parser, add, named, whole
from tinyllama_mcore.config.paths import unwritable

PACKAGES = (
    *(
        "torch",
        "deepspeed",
        "megatron-core",
        "transformers",
        "liger-kernel",
        "quack-kernels",
        "litgpt",
        "lightning",
        "torchao",
        "triton",
    ),
)
"""Packages whose versions the report lists."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(
        description="Measure the floor, this trainer and its peers in one run on one machine.", allow_abbrev=False
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help=f"directory for {', '.join(report.FILES)}"
    )
    parser.add_argument("--overwrite", action="store_true", help="overwrite the result in --output (default: refuse)")
    parser.add_argument(
        "--rows", default=",".join(rows.KEYS), metavar="NAME,...", help="rows to measure (default: %(default)s)"
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar='"JSON FLAGS"',
        help="adds a row of this trainer: a DeepSpeed JSON, then flags of the trainer; repeatable (default: "
        f"{', '.join(rows.CONFIGS)}; on a CPU {rows.CONFIGS[0]})",
    )
    parser.add_argument(
        "--nproc-per-node", type=whole(1), default=1, metavar="N", help="GPUs for each row (default: 1)"
    )
    add(parser, named("--micro-batch-size"), default=8)
    parser.add_argument(
        "--accumulation", type=whole(1), default=8, metavar="N", help="micro-batches in each update (default: 8)"
    )
    parser.add_argument(
        "--updates", type=whole(1), default=10, metavar="N", help="updates that are timed (default: 10)"
    )
    parser.add_argument(
        "--warmup", type=whole(1), default=4, metavar="N", help="updates before the timed ones (default: 4)"
    )
    parser.add_argument(
        "--timeout-minutes",
        type=whole(1),
        default=15,
        metavar="N",
        help="minutes after which a row is stopped (default: 15)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="profile one more update of each row of this trainer (default: do not)",
    )
    return parser.parse_args(argv)


def machine_of(processes: int) -> report.Machine:
    """This machine.

    Raises:
        ConfigError: it has fewer GPUs than that, or none and more than one process is asked for.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    most = torch.cuda.device_count() if on_gpu else 1
    if processes > most:
        there = f"there are {most} GPUs" if on_gpu else "without a GPU one process is measured"
        raise ConfigError(f"--nproc-per-node {processes}: {there}; give at most {most}")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if on_gpu else None
    return report.Machine(device=device, processes=processes, versions=versions)


def folder_of(output: Path, *, overwrite: bool) -> Path:
    """The directory for the result, made where it is missing; its directory `logs` too.

    Raises:
        ConfigError: it cannot be written in, or holds a result that is not to be replaced.
    """
    if (output.exists() and not output.is_dir()) or unwritable(output) is not None:
        raise ConfigError(f"--output {output}: not a directory that can be written; name another")
    present = [name for name in report.FILES if (output / name).exists()]
    if present and not overwrite:
        raise ConfigError(f"--output {output} holds {present[0]} already; name another directory, or give --overwrite")
    (output / "logs").mkdir(parents=True, exist_ok=True)
    return output


def benchmark(given: argparse.Namespace) -> None:
    """Check all that is asked for, measure it, and write what is known after every row."""
    keys = rows.keys_of(given.rows)
    machine = machine_of(given.nproc_per_node)
    workload = workload_of(
        "tinyllama-1.1b" if machine.device else "tinyllama-debug",
        on_gpu=machine.device is not None,
        batch=(given.micro_batch_size, given.accumulation),
        timed=(given.warmup, given.updates),
    )
    configs = given.config or list(rows.CONFIGS[: None if machine.device else 1])
    plan = rows.Plan(
        workload=workload,
        keys=keys,
        configs=tuple(ours.rows_of(configs, given.output if given.profile else None)),
        processes=given.nproc_per_node,
        logs=given.output / "logs",
        timeout_minutes=given.timeout_minutes,
    )
    prepared = rows.prepare(plan)
    folder = folder_of(given.output, overwrite=given.overwrite)
    found = rows.measure_all(prepared, plan, lambda known: _write(known, workload, machine, folder))
    print(*report.markdown(report.compare(found, workload, machine.device), workload, machine), sep="\n")
    print(f"\nwrote        {folder}", file=sys.stderr)


def _write(known: list[Measurement], workload: Workload, machine: report.Machine, folder: Path) -> None:
    report.write(report.compare(known, workload, machine.device), workload, machine, folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 2 for a user's mistake."""
    return exit_code(lambda: benchmark(parse(sys.argv[1:] if argv is None else argv)))
