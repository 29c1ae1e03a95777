"""What the rows say beside each other: the table, the JSON file, and the paper's Figure 1 with this machine in it.

Neighbours: `rows` measures; `model.flops` has both conventions of MFU and the peaks of devices.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllama_mcore.benchmarking.workload import YARDSTICK, Measurement, Workload
from tinyllama_mcore.config import records
from tinyllama_mcore.model.flops import dense_bf16_peak, flops_per_token

FIGURE_TOKENS = 300e9
"""Tokens that the paper's Figure 1 is about."""
PUBLISHED_HOURS = (("MPT-1.3B", 7_920), ("Pythia-1.0B", 4_830), ("TinyLlama-1.1B", 3_456))
"""A100 hours for 300 B tokens (arXiv 2401.02385, section 2.3 and Figure 1)."""
HEADER = (
    "",
    "tokens/s/GPU",
    "MFU, full attention",
    "MFU, causal attention",
    "of the floor",
    "of the best peer, same precision",
    "peak GiB",
    "precision",
)
FILES = ("benchmark.json", "benchmark.md", "figure1.png")
"""What a result is: in --output."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it was measured."""

    device: str | None
    """What the driver calls the GPU; None on a CPU."""
    processes: int
    """GPUs, or processes on a CPU."""
    versions: dict[str, str]
    """Package -> its version, of those that are installed."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A row and what follows from it. None where there is nothing to divide by, or nothing was measured."""

    row: Measurement
    mfu: float | None
    """Share of the device's dense bf16 peak, counting full attention."""
    mfu_causal: float | None
    """The same, counting causal attention."""
    of_floor: float | None
    """Tokens a second over the floor's."""
    of_best_peer: float | None
    """Tokens a second over those of the fastest peer in the same precision, or of what `YARDSTICK` says."""
    hours: float | None
    """GPU hours for 300 B tokens."""


def compare(rows: Sequence[Measurement], workload: Workload, device: str | None) -> list[Compared]:
    """Each row beside the floor, the device's peak and the best peer."""
    flops, peak = flops_per_token(workload.model, workload.seq_length), dense_bf16_peak(device)
    floor = next((row.tokens_per_s for row in rows if row.kind == "floor"), None)
    best: dict[str, float] = {}
    for row in rows:
        if row.kind == "peer" and row.tokens_per_s is not None:
            best[row.precision] = max(row.tokens_per_s, best.get(row.precision, 0.0))

    def over(row: Measurement, divisor: float | None, factor: float = 1.0) -> float | None:
        return row.tokens_per_s * factor / divisor if row.tokens_per_s is not None and divisor else None

    return [
        Compared(
            row=row,
            mfu=over(row, peak, flops.full_attention),
            mfu_causal=over(row, peak, flops.causal_attention),
            of_floor=over(row, floor),
            of_best_peer=over(row, best.get(YARDSTICK.get(row.precision, row.precision)))
            if row.kind != "floor"
            else None,
            hours=FIGURE_TOKENS / row.tokens_per_s / 3600 if row.tokens_per_s else None,
        )
        for row in rows
    ]


def markdown(compared: Sequence[Compared], workload: Workload, machine: Machine) -> Iterator[str]:
    """The whole result as lines of Markdown."""
    place = f"{machine.processes} x {machine.device}" if machine.device else f"{machine.processes} CPU process(es)"
    yield (
        f"{place}; {workload.recipe}, {workload.seq_length:,} tokens, micro batch {workload.micro_batch_size} x "
        f"{workload.accumulation}; median of {workload.updates} updates after {workload.warmup}; "
        + ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    )
    yield ""
    yield f"| {' | '.join(HEADER)} |"
    yield "|---" * len(HEADER) + "|"
    for each in compared:
        row = each.row
        if row.tokens_per_s is None:
            problem = row.problem.replace("|", "/")
            yield f"| {row.name} | not measured: {problem} " + "| " * (len(HEADER) - 3) + f"| {row.precision} |"
            continue
        cells = (
            row.name,
            f"{row.tokens_per_s:,.0f}",
            _percent(each.mfu),
            _percent(each.mfu_causal),
            _ratio(each.of_floor),
            _ratio(each.of_best_peer),
            "" if row.peak_memory_gib is None else f"{row.peak_memory_gib:.1f}",
            row.precision,
        )
        yield f"| {' | '.join(cells)} |"
    for each in compared:
        if each.row.parts_ms:
            yield ""
            yield "The floor's parts, milliseconds of an update, each timed alone in the order of a step:"
            yield ", ".join(f"{part} {value:,.1f}" for part, value in each.row.parts_ms.items())


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value * 100:.1f} %"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def plain(compared: Sequence[Compared], workload: Workload, machine: Machine) -> dict[str, Any]:
    """The whole result as JSON has it."""
    return {
        "machine": records.to_plain(machine),
        "workload": records.to_plain(workload),
        "rows": [records.to_plain(each) for each in compared],
    }


def figure(compared: Sequence[Compared], workload: Workload, machine: Machine, output: Path) -> None:
    """Draw GPU hours for 300 B tokens as PNG: the paper's three bars, and each measured row but the floor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = [(f"{name} (paper)", float(hours), "0.6") for name, hours in PUBLISHED_HOURS]
    colours = {"ours": "tab:blue", "peer": "tab:orange"}
    bars += [(e.row.name, e.hours, colours[e.row.kind]) for e in compared if e.hours and e.row.kind in colours]
    labels, hours, colour = zip(*reversed(bars), strict=True)
    drawn = Figure(figsize=(10, 1.2 + 0.4 * len(bars)), layout="constrained")
    axes = drawn.subplots()
    placed = axes.barh(range(len(bars)), hours, color=colour)
    axes.bar_label(placed, labels=[f"{value:,.0f}" for value in hours], padding=3)
    axes.set_yticks(range(len(bars)), labels)
    axes.margins(x=0.12)
    axes.set(
        xlabel="GPU hours for 300 B tokens",
        title="Training cost of 300 B tokens (arXiv 2401.02385, Figure 1)",
    )
    others = f"{workload.recipe} on {machine.device or 'a CPU'}, measured"
    drawn.supxlabel(f"grey: on A100s, as published; the others: {others}", fontsize="medium")  # as wide as the figure
    FigureCanvasAgg(drawn).print_png(str(output))


def write(compared: Sequence[Compared], workload: Workload, machine: Machine, folder: Path) -> None:
    """The JSON file and the table; the figure where matplotlib is installed."""
    document, table, picture = (folder / name for name in FILES)
    document.write_text(json.dumps(plain(compared, workload, machine), indent=1) + "\n", encoding="utf-8")
    table.write_text("\n".join(markdown(compared, workload, machine)) + "\n", encoding="utf-8")
    try:
        figure(compared, workload, machine, picture)
    except ModuleNotFoundError as error:
        picture.with_suffix(".txt").write_text(f"no figure: {error}\n", encoding="utf-8")
