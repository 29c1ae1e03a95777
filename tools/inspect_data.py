"""What is in indexed data, and what a run draws from it: the command line of `reporting.inspection` and its neighbours.

    python tools/inspect_data.py --data-path data/slimpajama_text_document --document 17
    python tools/inspect_data.py --data-path data/slimpajama_text_document --validate
    python tools/inspect_data.py --data-path 0.7 data/slimpajama_text_document 0.3 data/code_text_document --sample 0

Flags are those of the trainer, and mean the same; with --load, what is not given is the run's. See docs/howto/data.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinyllama_mcore.config import cli, recipes
from tinyllama_mcore.config.flags import Flag, Parser, add, named, respelled, whole
from tinyllama_mcore.config.schema import ConfigError, DataConfig, RunConfig
from tinyllama_mcore.data.tokenizer import SentencePieceTokenizer
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.reporting import inspection, validation

if TYPE_CHECKING:
    from tinyllama_mcore.checkpoint.selection import Checkpoint
    from tinyllama_mcore.sampling.blend import BlendedSamples

RECIPE = "tinyllama-1.1b"
"""Gives the sequence length where neither a flag nor a run does."""
DEFAULTS = {"seq_length": recipes.load(RECIPE).batch.seq_length, "seed": RunConfig.seed}
"""What a run that is not there yet takes."""
OF_A_BLEND = ("--split", "--seq-length", "--seed", "--data-cache-path", "--load", "--iteration")
_OF_A_RUN = "the run's with --load"
_DRAWN = f"{_OF_A_RUN}, else"
OF_THE_TRAINER = (
    replace(named("--data-path"), otherwise=f"{_DRAWN} it has to be given"),
    replace(named("--tokenizer-model"), otherwise=f"{_DRAWN} the one that the data's receipt names"),
    replace(named("--split"), otherwise=_OF_A_RUN),
    replace(named("--seq-length"), otherwise=f"{_DRAWN} {DEFAULTS['seq_length']}, {RECIPE}'s"),
    replace(named("--seed"), otherwise=_OF_A_RUN),
    replace(named("--data-cache-path"), otherwise=f"{_DRAWN} {named('--data-cache-path').otherwise}"),
    replace(
        named("--load"),
        words="directory of a run, which is asked as it is",
        otherwise="none: a run from its first sample on",
    ),
    replace(named("--iteration"), words="checkpoint of --load to take"),
)
"""The trainer's flags, with what holds here where they are not given."""
FIXED = {"--split": "data.split", "--seq-length": "batch.seq_length", "--seed": "seed"}
"""What a run keeps to from its first sample on -> where its checkpoints say it."""
LIMIT = 10
OWN = (
    Flag("--limit", read=whole(1), words="documents that --search shows", otherwise=str(LIMIT)),
    Flag("--json", words="print JSON", otherwise="a text to read"),
)
Record = dict[str, Any]


class Question(NamedTuple):
    """One thing to ask of data."""

    flag: Flag
    answer: Callable[[argparse.Namespace], Any]
    """What is found, as JSON can hold it."""
    lines: Callable[[Any], Iterator[str]]
    """The same as text."""
    of_blend: bool = False
    """Asked of a blend, else of one pair."""


def _prefix(given: argparse.Namespace) -> str:
    return given.data_path[0]


def _document(given: argparse.Namespace) -> Record:
    tokenizer = inspection.tokenizer_of(_prefix(given), given.tokenizer_model)
    return asdict(inspection.document(_prefix(given), given.document, tokenizer))


def _document_lines(found: Record) -> Iterator[str]:
    yield f"document {found['document']:,} of {found['prefix']}: {len(found['tokens']):,} tokens"
    yield found["text"]


def _drawn(given: argparse.Namespace) -> tuple[DataConfig, BlendedSamples, SentencePieceTokenizer]:
    """The blend that the trainer's flags name, its training samples, and their tokenizer."""
    from tinyllama_mcore.reporting import blend_report  # it imports torch and Megatron: seconds

    found = None if given.load is None else _as_the_run(given)
    for name, value in DEFAULTS.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    data = cli.data(given)
    if found is not None and not data.blend:
        data = replace(data, blend=found[1].config.data.blend)
    tokenizer = inspection.tokenizer_of(data.blend[0][1], given.tokenizer_model)
    samples = blend_report.samples_of(data, seq_length=given.seq_length, seed=given.seed, tokenizer=tokenizer)
    if found is not None:
        samples = _after_the_run(found, data, samples, tokenizer)
    return data, samples, tokenizer


def _as_the_run(given: argparse.Namespace) -> Checkpoint:
    """Fill in what is not given as the run of --load has it. ConfigError where something else is given."""
    from tinyllama_mcore.checkpoint import selection

    folder, manifest = found = selection.newest_by_size(Path(given.load), given.iteration)
    if manifest.provenance.order is None:
        raise ConfigError(
            f"--load {given.load}: {folder} was imported, no run drew samples before it; leave --load out"
        )
    for flag, field in FIXED.items():
        value: Any = operator.attrgetter(field)(manifest.config)
        asked = getattr(given, _attribute(flag))
        if asked not in (None, value):
            raise ConfigError(f"{flag} {_spelled(asked)}: the run of {folder} has {_spelled(value)}; leave {flag} out")
        setattr(given, _attribute(flag), value)
    data = manifest.config.data
    given.data_cache_path = given.data_cache_path or data.cache_dir
    given.tokenizer_model = given.tokenizer_model or data.tokenizer_model
    return found


def _spelled(value: object) -> str:
    return ",".join(f"{share:g}" for share in value) if isinstance(value, tuple) else str(value)


def _after_the_run(
    found: Checkpoint, data: DataConfig, samples: BlendedSamples, tokenizer: SentencePieceTokenizer
) -> BlendedSamples:
    """The samples after what the run of a checkpoint drew from other blends. ConfigError where it has this one not."""
    from tinyllama_mcore.checkpoint import compatibility

    saved = found[1].provenance.order
    assert saved is not None  # _as_the_run refused imported weights
    order = replace(
        saved,
        tokenizer_sha256=tokenizer.vocabulary.sha256,
        weights=tuple(weight for weight, _ in data.blend),
        datasets=samples.datasets,
    )
    return samples.after(compatibility.blend_history(*found, order))


def _sample(given: argparse.Namespace) -> Record:
    from tinyllama_mcore.reporting import blend_report

    _, samples, tokenizer = _drawn(given)
    if given.sample < samples.history.start:
        raise ConfigError(
            f"--sample {given.sample}: is of an earlier blend; this one begins at {samples.history.start}"
        )
    return asdict(blend_report.sample(samples, given.sample, tokenizer))


def _sample_lines(found: Record) -> Iterator[str]:
    yield (
        f"sample {found['sample']:,} is number {found['position']:,} of epoch {found['epoch']} of {found['prefix']}: "
        f"{len(found['tokens']) - 1:,} tokens and the next one, from {len(found['parts'])} documents"
    )
    for part in found["parts"]:
        last = part["first"] + part["tokens"] - 1
        yield f"--- document {part['document']:,}, tokens {part['first']:,} to {last:,}"
        yield part["text"]


def _statistics(given: argparse.Namespace) -> Record:
    return inspection.statistics(_prefix(given))


def _statistics_lines(found: Record) -> Iterator[str]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield name
            yield from (f"  {key:<20} {_shown(entry)}" for key, entry in value.items())
        else:
            yield f"{name:<22} {_shown(value)}"


def _shown(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(entry)}" for key, entry in value.items()) or "none"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _search(given: argparse.Namespace) -> list[Record]:
    tokenizer = inspection.tokenizer_of(_prefix(given), given.tokenizer_model)
    matches = inspection.search(_prefix(given), given.search, tokenizer)
    return [asdict(match) for match in itertools.islice(matches, given.limit)]


def _search_lines(found: list[Record]) -> Iterator[str]:
    yield f"{len(found)} documents shown (--limit)" if found else "in no document"
    yield from (f"{match['document']:>12,}  at {match['character']:>9,}  {match['excerpt']!r}" for match in found)


def _validate(given: argparse.Namespace) -> Record:
    tokenizer = inspection.tokenizer_of(_prefix(given), given.tokenizer_model)
    return asdict(validation.validate(_prefix(given), tokenizer))


def _validate_lines(found: Record) -> Iterator[str]:
    receipt = "receipt counted again" if found["has_receipt"] else "no receipt"
    size = f"{found['documents']:,} documents, {found['tokens']:,} tokens, {receipt}"
    yield f"{found['prefix']}: {size}: {len(found['faults']) or 'no'} faults"
    yield from (f"  {fault}" for fault in found["faults"])


def _plan(given: argparse.Namespace) -> list[Record]:
    from tinyllama_mcore.reporting import blend_report

    data, samples, _ = _drawn(given)
    return [asdict(dataset) for dataset in blend_report.plan(data, given.plan, samples)]


def _plan_lines(found: list[Record]) -> Iterator[str]:
    yield f"{'weight':>8} {'tokens an epoch':>19} {'tokens drawn':>19} {'epochs':>9}  dataset"
    for row in found:
        numbers = f"{row['weight']:>8.6f} {row['tokens_per_epoch']:>19,} {row['tokens']:>19,} {row['epochs']:>9.3f}"
        yield f"{numbers}  {row['prefix']}"


_COUNT = whole(1)
_NUMBER = whole(0)
QUESTIONS = (
    Question(
        Flag("--document", read=_NUMBER, metavar="I", words="decode document I of a pair", otherwise="do not"),
        *(_document, _document_lines),
    ),
    Question(
        Flag("--sample", read=_NUMBER, metavar="I", words="decode training sample I of a blend", otherwise="do not"),
        *(_sample, _sample_lines, True),
    ),
    Question(
        Flag("--statistics", words="figures of a pair"),
        *(_statistics, _statistics_lines),
    ),
    Question(
        Flag("--search", read=str, metavar="TEXT", words="documents of a pair that hold a string", otherwise="do not"),
        *(_search, _search_lines),
    ),
    Question(
        Flag("--validate", words="check all of a pair; exit code 1 for a fault"),
        *(_validate, _validate_lines),
    ),
    Question(
        Flag("--plan", read=_COUNT, metavar="TOKENS", words="epochs of each dataset of a blend", otherwise="do not"),
        *(_plan, _plan_lines, True),
    ),
)


def _attribute(name: str) -> str:
    """The parsed flag's attribute that holds this flag's value."""
    return name[2:].replace("-", "_")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Question]:
    """The flags and the one question. ConfigError for a flag that is wrong, and for none or several questions."""
    parser = Parser(description="Look into .bin/.idx data, or into what a run draws from it.", allow_abbrev=False)
    rows = [*(question.flag for question in QUESTIONS), *OF_THE_TRAINER, *OWN]
    for flag in rows:
        add(parser, flag)
    given = parser.parse_args(list(respelled(argv, [*(flag.name for flag in rows), "--help"])))
    asked = [question for question in QUESTIONS if getattr(given, question.flag.dest) is not None]
    names = ", ".join(question.flag.name for question in QUESTIONS)
    if len(asked) != 1:
        raise ConfigError(f"ask one thing: {len(asked)} of {names} are given")
    (question,) = asked
    if not given.data_path and given.load is None:
        raise ConfigError(f"--data-path is missing: it names the .bin/.idx pair that {question.flag.name} is asked of")
    if not question.of_blend and len(given.data_path or ()) > 1:
        raise ConfigError(
            f"--data-path {' '.join(given.data_path)}: {question.flag.name} is asked of one pair; give one prefix"
        )
    idle = (() if question.of_blend else OF_A_BLEND) + (() if question.flag.name == "--search" else ("--limit",))
    for flag in rows:
        if flag.name in idle and getattr(given, flag.dest) is not None:
            raise ConfigError(f"{flag.name} does nothing with {question.flag.name}: leave it out")
    if given.iteration is not None and given.load is None:
        raise ConfigError(f"--iteration {given.iteration} names a checkpoint of --load, which is not given")
    given.limit = given.limit or LIMIT
    return given, question


def inspect_data(argv: Sequence[str]) -> int:
    """Answer the question; 1 where a pair that was validated has a fault."""
    launch.quiet_third_parties()
    given, question = parse(argv)
    found = question.answer(given)
    print(json.dumps(found, indent=2) if given.json else "\n".join(question.lines(found)))
    return 1 if isinstance(found, dict) and found.get("faults") else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Answer; 2 for a user's mistake."""
    return cli.exit_code(lambda: inspect_data(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
