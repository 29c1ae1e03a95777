"""Every layout of a recipe on so many GPUs: the legal ones with memory and speed, the illegal kinds with their reason.

Only `config.rules` decides what is legal. Its rows of the layout are asked first, with a micro batch of 1, which breaks
none of them that a larger one would not: so a whole branch is refused with one message instead of a thousand.
Neighbours: `memory` and `throughput` judge a candidate, `report` prints what is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from tinyllama_mcore.config.deepspeed.document import Document
from tinyllama_mcore.config.deepspeed.key import Settled
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import LayoutConfig, RunConfig
from tinyllama_mcore.planning import memory, throughput
from tinyllama_mcore.planning.gpus import NODE, Gpu
from tinyllama_mcore.planning.memory import Memory

MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
# (RunConfig.transformer_impl, compile, recompute). Local layers are tried only with --compile: without it fused ones
# are faster and keep less, even where local ones recompute the core attention.
PASSES = (
    ("fused", False, "none"),
    ("fused", False, "full"),
    ("local", True, "none"),
    ("local", True, "selective"),
    ("local", True, "full"),
)
MOST_CHUNKS = 4
"""Model chunks of a pipeline rank that are tried at most."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A run to lay out: what all candidates of one DeepSpeed JSON share."""

    run: RunConfig
    document: Document
    """Its JSON: each candidate fills its "auto" anew."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One legal run."""

    run: RunConfig
    memory: Memory
    """Memory of the rank that needs most."""
    tokens_per_second: float
    """Predicted, per GPU."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One kind of illegal layout."""

    rule: str
    """Name of the row that is broken."""
    message: str
    """What the trainer would say of the first one met."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search found."""

    fitting: tuple[Candidate, ...]
    """Those that the GPU holds, fastest first."""
    too_large: tuple[Candidate, ...]
    """Legal, but more than the GPU holds; smallest first."""
    refusals: tuple[Refusal, ...]
    """One of each broken rule, in the order met."""


def search(bases: Sequence[Base], gpu: Gpu) -> Plan:
    """Try every layout with each JSON.

    Args:
        bases: one a JSON; their world size, batch and recipe are the same.
        gpu: what each rank runs on.
    """
    broken: dict[str, str] = {}
    legal = [
        Candidate(run=run, memory=memory.worst(run), tokens_per_second=throughput.tokens_per_second(run, gpu))
        for base in bases
        for run in _legal(base, broken)
    ]
    fits = [candidate.memory.total <= gpu.usable for candidate in legal]
    return Plan(
        fitting=tuple(
            sorted((c for c, fit in zip(legal, fits, strict=True) if fit), key=lambda c: -c.tokens_per_second)
        ),
        too_large=tuple(
            sorted((c for c, fit in zip(legal, fits, strict=True) if not fit), key=lambda c: c.memory.total)
        ),
        refusals=tuple(Refusal(rule=name, message=message) for name, message in broken.items()),
    )


def broken_rule(run: RunConfig, rows: Sequence[Rule]) -> Rule | None:
    """The first row that the run breaks."""
    return next((rule for rule in rows if not rule.holds(run)), None)


def _legal(base: Base, broken: dict[str, str]) -> Iterator[RunConfig]:
    """Every legal run of one JSON; the first of each illegal kind is written into `broken`."""
    rows = tuple(legality.rows(has_gpu=lambda: True))
    of_layout = [rule for rule in rows if rule.about is About.LAYOUT]
    for layout in _layouts(base.run):
        smallest = _with(base, layout, micro_batch_size=_micro_batches(base)[0])
        if not _stands(smallest, of_layout, broken) or not _stands(smallest, rows, broken):
            continue
        for (layers, compiled, recompute), micro_batch_size in product(PASSES, _micro_batches(base)):
            run = _with(base, replace(layout, recompute_granularity=recompute), micro_batch_size=micro_batch_size)
            run = replace(run, transformer_impl=layers, compile=compiled)
            if _stands(run, rows, broken):
                yield run


def _stands(run: RunConfig, rows: Sequence[Rule], broken: dict[str, str]) -> bool:
    """Whether the run breaks no row; the message of a row that is broken for the first time is kept."""
    rule = broken_rule(run, rows)
    if rule is not None and rule.name not in broken:
        broken[rule.name] = rule.message(run)
    return rule is None


def _layouts(run: RunConfig) -> Iterator[LayoutConfig]:
    """Axes that could divide the world: tensor within a node and twice that, the others as far as they go."""
    world, most_layers = run.layout.world_size, run.model.num_layers
    sizes = [size for size in range(1, min(world, 4096) + 1) if world % size == 0]
    for tensor, pipeline, context, chunks, sequence in product(
        [size for size in sizes if size <= 2 * NODE],
        [size for size in sizes if size <= 2 * most_layers],
        [size for size in sizes if size <= NODE],
        range(1, MOST_CHUNKS + 1),
        (False, True),
    ):
        if tensor * pipeline * context <= world and (sequence is False or tensor > 1) and (chunks == 1 or pipeline > 1):
            yield replace(
                run.layout,
                tensor_model_parallel_size=tensor,
                pipeline_model_parallel_size=pipeline,
                virtual_pipeline_model_parallel_size=chunks,
                context_parallel_size=context,
                sequence_parallel=sequence,
            )


def _micro_batches(base: Base) -> tuple[int, ...]:
    """Sizes to try: the JSON's own where it gives one."""
    given = base.document.given()
    return (given["micro_batch_size"][1],) if "micro_batch_size" in given else MICRO_BATCHES


def _with(base: Base, layout: LayoutConfig, *, micro_batch_size: int) -> RunConfig:
    """The run in another layout, every "auto" of its JSON filled for it, as `config.compose` does."""
    run = base.run
    batch = replace(run.batch, micro_batch_size=micro_batch_size)
    settled = Settled(
        model=run.model,
        optimizer=run.optimizer,
        batch=batch,
        precision=run.sharding.precision,
        num_micro_batches=batch.num_micro_batches(layout.data_parallel_size),
    )
    return replace(run, layout=layout, batch=batch, sharding=base.document.resolve(settled))
