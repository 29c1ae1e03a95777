"""What a user asks the planner, and which of the runs found answers it.

Neighbours: `commands.plan_layout` reads a `Request` from flags, `search` looks for runs, `report` prints
them, `measure` makes some.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tinyllama_mcore.config import cli
from tinyllama_mcore.config.deepspeed import shipped
from tinyllama_mcore.config.deepspeed.document import Document
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.config.strict_json import did_you_mean
from tinyllama_mcore.planning.search import MICRO_BATCHES, Base, Candidate, Plan

MOST_RANKS = 4096
ASSUMED_VOCABULARY = 32_000
"""Pieces of the tokenizer, where the recipe takes any number."""

# Key of --explain -> the trainer's flag, and what the key is of a candidate, as text
_KEYS: dict[str, tuple[str, Callable[[Candidate], str]]] = {
    "tp": ("--tensor-model-parallel-size", lambda c: str(c.run.layout.tensor_model_parallel_size)),
    "pp": ("--pipeline-model-parallel-size", lambda c: str(c.run.layout.pipeline_model_parallel_size)),
    "vp": ("--virtual-pipeline-model-parallel-size", lambda c: str(c.run.layout.virtual_pipeline_model_parallel_size)),
    "cp": ("--context-parallel-size", lambda c: str(c.run.layout.context_parallel_size)),
    "sp": ("--sequence-parallel", lambda c: _on(c.run.layout.sequence_parallel)),
    "mb": ("--micro-batch-size", lambda c: str(c.run.batch.micro_batch_size)),
    "recompute": ("--recompute-granularity", lambda c: c.run.layout.recompute_granularity),
    "impl": ("--transformer-impl", lambda c: c.run.transformer_impl),
    "compile": ("--compile", lambda c: _on(c.run.compile)),
    "json": ("--deepspeed_config", lambda c: Path(c.run.sharding.source).stem),
}
KEYS = tuple(_KEYS)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A recipe on so many GPUs."""

    recipe: str
    """Name, or path of a JSON file."""
    world_size: int
    """GPUs."""
    given: tuple[str, ...] = ()
    """Flags of the trainer that hold for all runs, such as --global-batch-size."""
    files: tuple[str, ...] = ()
    """DeepSpeed JSONs to try; none: those that come with the package."""
    explain: str = ""
    """`key=value,...` of `KEYS`: values of the run to be shown in full."""


def run_of(request: Request, flags: Sequence[str]) -> RunConfig:
    """The run that the trainer would make of the request and more flags, its vocabulary size filled in."""
    argv = ["--recipe", request.recipe, *request.given, *flags]
    run = cli.parse(argv, world_size=request.world_size, has_gpu=lambda: True)
    return replace(run, model=replace(run.model, vocab_size=run.model.vocab_size or ASSUMED_VOCABULARY))


def bases(request: Request) -> list[Base]:
    """The run of each JSON, before it is laid out; of JSONs that say the same, the last.

    Raises:
        ConfigError: the world is out of range, or a recipe, a JSON or a flag is wrong.
    """
    if not 1 <= request.world_size <= MOST_RANKS:
        raise ConfigError(f"--world-size {request.world_size} must be from 1 to {MOST_RANKS}")
    found: dict[str, Base] = {}
    for source in request.files or shipped.names():
        document = Document.read(source)
        run = replace(run_of(request, ("--deepspeed_config", source)), notes=())
        found[json.dumps(document.blocks, sort_keys=True)] = Base(run=run, document=document)
    return list(found.values())


def answer(request: Request, plan: Plan) -> Candidate:
    """The fastest run that fits and is like `explain`, else the smallest of those that do not fit.

    Raises:
        ConfigError: a key is unknown, or no legal run is so; then with the message of the rule that it would break.
    """
    wanted = _wanted(request)
    for candidate in (*plan.fitting, *plan.too_large):
        if all(_KEYS[key][1](candidate) == value for key, value in wanted.items()):
            return candidate
    sources = {Path(base.run.sharding.source).stem: base.run.sharding.source for base in bases(request)}
    name = wanted.get("json", next(iter(sources)))
    if name not in sources:
        raise ConfigError(f"--explain {request.explain}: json must be one of {', '.join(sources)}, got {name}")
    options = {"json": sources[name]} | {key: value for key, value in wanted.items() if key != "json"}
    flags = [word for key, value in options.items() if value != "off" for word in (_KEYS[key][0], value)]
    legality.check(run_of(request, [word for word in flags if word != "on"]), has_gpu=lambda: True)
    sizes = ", ".join(map(str, MICRO_BATCHES))
    raise ConfigError(
        f"--explain {request.explain}: legal, but the search does not try it: it tries micro batches {sizes}, and "
        "local layers only with --compile"
    )


def _wanted(request: Request) -> dict[str, str]:
    """`explain` as key -> value."""
    pairs = [part.partition("=") for part in request.explain.replace(" ", "").split(",") if part]
    for key, _, value in pairs:
        if key not in _KEYS or not value:
            hint = did_you_mean(key, _KEYS)
            raise ConfigError(f"--explain {request.explain}: expected key=value{hint}; keys: {', '.join(KEYS)}")
    return {key: value for key, _, value in pairs}


def _on(switch: bool) -> str:
    return "on" if switch else "off"
