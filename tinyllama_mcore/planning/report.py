"""What a search found, as text and as plain JSON values. Neighbours: `search`, `command`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import PurePath

from tinyllama_mcore.config import describe, records
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.config.strict_json import Json
from tinyllama_mcore.planning import command, memory, throughput
from tinyllama_mcore.planning.gpus import GIB, Gpu
from tinyllama_mcore.planning.search import Candidate, Plan

_COLUMNS = ("tokens/s/GPU", "GiB", "JSON", "tensor", "pipeline", "context", "data", "micro", "recompute", "layers")


def table(candidates: Sequence[Candidate], top: int) -> list[str]:
    """The best of each layout and JSON, in the order given, aligned; at most `top` rows."""
    best: dict[tuple, Candidate] = {}
    for candidate in candidates:
        layout = candidate.run.layout
        best.setdefault((candidate.run.sharding.source, *_axes(candidate.run), layout.sequence_parallel), candidate)
    rows = [_COLUMNS, *(_row(candidate) for candidate in list(best.values())[:top])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _axes(run: RunConfig) -> tuple[int, int, int, int]:
    layout = run.layout
    return (
        layout.tensor_model_parallel_size,
        layout.pipeline_model_parallel_size,
        layout.virtual_pipeline_model_parallel_size,
        layout.context_parallel_size,
    )


def _row(candidate: Candidate) -> tuple[str, ...]:
    run, layout = candidate.run, candidate.run.layout
    tensor, pipeline, chunks, context = _axes(run)
    return (
        f"{candidate.tokens_per_second:,.0f}",
        f"{candidate.memory.total / GIB:.1f}",
        PurePath(run.sharding.source).name,
        f"{tensor}{'+sp' * layout.sequence_parallel}",
        f"{pipeline}{f'x{chunks}' if chunks > 1 else ''}",
        str(context),
        str(layout.data_parallel_size),
        str(run.batch.micro_batch_size),
        layout.recompute_granularity,
        describe.layers(run),
    )


def explanation(run: RunConfig, gpu: Gpu) -> Iterator[str]:
    """One run in full: memory of each pipeline rank, the time of an iteration, the command."""
    yield from memory_lines(run)
    room = f"{gpu.usable / GIB:.1f} GiB of {gpu.name}'s {gpu.memory / GIB:.1f}"
    yield f"room         {room}: {verdict(memory.worst(run).total, gpu)}"
    seconds = throughput.iteration(run, gpu)
    spent = ", ".join(f"{name} {part:.3f}" for name, part in asdict(seconds).items() if part)
    yield f"iteration    {seconds.total:.3f} s = {spent}"
    yield f"speed        {throughput.tokens_per_second(run, gpu):,.0f} tokens/s/GPU"
    yield f"JSON         {run.sharding.source}"
    yield f"command      {command.launch(run)}"


def memory_lines(run: RunConfig) -> Iterator[str]:
    """The peak of each pipeline rank, and what it is made of."""
    peaks = memory.by_rank(run)
    for number, peak in enumerate(peaks):
        pieces = ", ".join(f"{name} {size / GIB:.2f}" for name, size in asdict(peak).items())
        where = f" on pipeline rank {number}" if len(peaks) > 1 else ""
        yield f"memory       {peak.total / GIB:.2f} GiB{where} = {pieces}"


def verdict(needed: float, gpu: Gpu) -> str:
    """Whether a GPU holds so many bytes."""
    return "fits" if needed <= gpu.usable else f"{(needed - gpu.usable) / GIB:.1f} GiB too much"


def plain(plan: Plan, gpu: Gpu, chosen: Candidate) -> Json:
    """Everything that was found, and the command of the run that was chosen."""
    return {
        "chosen": {"command": command.launch(chosen.run), **_plain(chosen)},
        "gpu": records.to_plain(gpu) | {"usable": gpu.usable},
        "fitting": [_plain(candidate) for candidate in plan.fitting],
        "too_large": [_plain(candidate) for candidate in plan.too_large],
        "illegal": [records.to_plain(refusal) for refusal in plan.refusals],
    }


def _plain(candidate: Candidate) -> Json:
    run = candidate.run
    return {
        "tokens_per_s_per_gpu": round(candidate.tokens_per_second, 1),
        "memory_bytes": round(candidate.memory.total),
        "memory_by_part": {name: round(size) for name, size in asdict(candidate.memory).items()},
        "deepspeed_config": run.sharding.source,
        "layout": records.to_plain(run.layout) | {"data_parallel_size": run.layout.data_parallel_size},
        "micro_batch_size": run.batch.micro_batch_size,
        "transformer_impl": run.transformer_impl,
        "compile": run.compile,
    }
