"""Shows what a dataset holds and what a run draws from it: the command line of `reporting.inspection` and neighbours.

    tinyllama-inspect --data-path data/slimpajama_text_document --document 17
    tinyllama-inspect --data-path data/slimpajama_text_document --validate
    tinyllama-inspect --data-path 0.7 data/slimpajama_text_document 0.3 data/code_text_document --sample 0

Flags mean what they mean to the trainer. With --load, flags that are not given have the run's values. See
docs/howto/data.md.
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
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.flag import Flag
from tinyllama_mcore.config.flags import Parser, add, named, respelled, whole
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.data.tokenizer import Tokenizer
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.reporting import inspection, validation

if TYPE_CHECKING:
    from tinyllama_mcore.checkpoint.manifest import Checkpoint
    from tinyllama_mcore.sampling.blend import BlendedSamples

RECIPE = "tinyllama-1.1b"
"""Gives the sequence length where neither a flag nor a run does."""
DEFAULTS = {"seq_length": recipes.load(RECIPE).batch.seq_length, "seed": RunConfig.seed}
"""What holds without --load, where a flag is not given."""
OF_A_BLEND = ("--split", "--seq-length", "--seed", "--data-cache-path", "--load", "--iteration")
_OF_A_RUN = "with --load the run's"
_DRAWN = f"{_OF_A_RUN}, else"
OF_THE_TRAINER = (
    replace(named("--data-path"), otherwise=f"{_DRAWN} none: it has to be given"),
    replace(named("--tokenizer-model"), otherwise=f"{_DRAWN} the one that the data's receipt names"),
    replace(named("--tokenizer-type"), otherwise=f"{_DRAWN} by the file"),
    replace(named("--eod-token"), otherwise=f"{_DRAWN} {named('--eod-token').otherwise}"),
    replace(named("--split"), otherwise=_OF_A_RUN),
    replace(named("--seq-length"), otherwise=f"{_DRAWN} {DEFAULTS['seq_length']}, {RECIPE}'s"),
    replace(named("--seed"), otherwise=_OF_A_RUN),
    replace(named("--data-cache-path"), otherwise=f"{_DRAWN} {named('--data-cache-path').otherwise}"),
    replace(
        named("--load"),
        words="directory that a run saved to: --sample and --plan then answer for that run",
        otherwise="none: they answer for a new run with these flags",
    ),
    replace(named("--iteration"), words="the checkpoint in --load to read"),
)
"""The trainer's flags, with their defaults here."""
FIXED = {"--split": "data.split", "--seq-length": "batch.seq_length", "--seed": "seed"}
"""Flags whose values a run cannot change -> where its checkpoints have them."""
LIMIT = 10
OWN = (
    Flag("--limit", read=whole(1), words="most documents that --search shows", otherwise=str(LIMIT)),
    Flag("--json", words="print the answer as JSON", otherwise="print text"),
)
Record = dict[str, Any]


class Question(NamedTuple):
    """A question that the tool answers."""

    flag: Flag
    answer: Callable[[argparse.Namespace], Any]
    """Finds the answer, as JSON can hold it."""
    lines: Callable[[Any], Iterator[str]]
    """The answer as lines of text."""
    of_blend: bool = False
    """Whether it is about a blend; else about one dataset."""


def _prefix(given: argparse.Namespace) -> str:
    return given.data_path[0]


def _document(given: argparse.Namespace) -> Record:
    tokenizer = inspection.tokenizer_of(_prefix(given), cli.data(given))
    return asdict(inspection.document(_prefix(given), given.document, tokenizer))


def _document_lines(found: Record) -> Iterator[str]:
    yield f"document {found['document']:,} of {found['prefix']}: {len(found['tokens']):,} tokens"
    yield found["text"]


def _drawn(given: argparse.Namespace) -> tuple[BlendedSamples, Tokenizer]:
    """The training samples of the blend that the trainer's flags name, and their tokenizer."""
    from tinyllama_mcore.reporting import blend_report  # it imports torch and Megatron: seconds

    found = None if given.load is None else _as_the_run(given)
    for name, value in DEFAULTS.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    data = cli.data(given)
    if found is not None and not data.blend:
        of_run = found.manifest.config.data
        data = replace(data, blend=of_run.blend, later_blends=of_run.later_blends)
    tokenizer = inspection.tokenizer_of(data.blend[0][1], data)
    samples = blend_report.samples_of(data, seq_length=given.seq_length, seed=given.seed, tokenizer=tokenizer)
    if found is not None:
        samples = _after_the_run(found, samples, tokenizer)
    return samples, tokenizer


def _as_the_run(given: argparse.Namespace) -> Checkpoint:
    """Give flags that were not given the values of the run of --load. ConfigError where one was given another value."""
    from tinyllama_mcore.checkpoint import selection

    folder, manifest = found = selection.newest_by_size(Path(given.load), given.iteration)
    if manifest.provenance.order is None:
        raise ConfigError(
            f"--load {given.load}: {folder} holds imported weights, and no run has drawn samples yet; leave --load out"
        )
    for flag, field in FIXED.items():
        value: Any = operator.attrgetter(field)(manifest.config)
        asked = getattr(given, _attribute(flag))
        if asked not in (None, value):
            raise ConfigError(f"{flag} {_spelled(asked)}: the run of {folder} has {_spelled(value)}; leave {flag} out")
        setattr(given, _attribute(flag), value)
    data = manifest.config.data
    given.data_cache_path = given.data_cache_path or data.cache_dir
    if given.tokenizer_model is None:
        for name in ("tokenizer_model", "tokenizer_type", "eod_token"):
            setattr(given, name, getattr(data, name))
    return found


def _spelled(value: object) -> str:
    return ",".join(f"{share:g}" for share in value) if isinstance(value, tuple) else str(value)


def _after_the_run(found: Checkpoint, samples: BlendedSamples, tokenizer: Tokenizer) -> BlendedSamples:
    """The samples that follow what the checkpoint's run drew from earlier blends. ConfigError if its blend differs."""
    from tinyllama_mcore.checkpoint import compatibility

    saved = found.manifest.provenance.order
    assert saved is not None  # _as_the_run refused imported weights
    consumed = found.manifest.state.consumed_samples
    weights, datasets, _ = samples.blend_at(consumed)
    order = replace(saved, tokenizer_sha256=tokenizer.vocabulary.sha256, weights=weights, datasets=datasets)
    return samples.after(compatibility.blend_history(found, order), consumed)


def _sample(given: argparse.Namespace) -> Record:
    from tinyllama_mcore.reporting import blend_report

    samples, tokenizer = _drawn(given)
    if given.sample < samples.history.start:
        raise ConfigError(
            f"--sample {given.sample} was drawn from an earlier blend; samples of the present one begin at "
            f"{samples.history.start}"
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
    tokenizer = inspection.tokenizer_of(_prefix(given), cli.data(given))
    matches = inspection.search(_prefix(given), given.search, tokenizer)
    return [asdict(match) for match in itertools.islice(matches, given.limit)]


def _search_lines(found: list[Record]) -> Iterator[str]:
    yield f"{len(found)} documents shown (--limit)" if found else "no document holds this text"
    yield from (f"{match['document']:>12,}  at {match['character']:>9,}  {match['excerpt']!r}" for match in found)


def _validate(given: argparse.Namespace) -> Record:
    tokenizer = inspection.tokenizer_of(_prefix(given), cli.data(given))
    return asdict(validation.validate(_prefix(given), tokenizer))


def _validate_lines(found: Record) -> Iterator[str]:
    receipt = "compared with its receipt" if found["has_receipt"] else "without a receipt"
    size = f"{found['documents']:,} documents, {found['tokens']:,} tokens, {receipt}"
    yield f"{found['prefix']}: {size}: {len(found['faults']) or 'no'} faults"
    yield from (f"  {fault}" for fault in found["faults"])


def _plan(given: argparse.Namespace) -> list[Record]:
    from tinyllama_mcore.reporting import blend_report

    samples, _ = _drawn(given)
    return [asdict(dataset) for dataset in blend_report.plan(given.plan, samples)]


def _plan_lines(found: list[Record]) -> Iterator[str]:
    yield f"{'weight':>8} {'tokens an epoch':>19} {'tokens drawn':>19} {'epochs':>9}  dataset"
    for row in found:
        numbers = f"{row['weight']:>8.6f} {row['tokens_per_epoch']:>19,} {row['tokens']:>19,} {row['epochs']:>9.3f}"
        yield f"{numbers}  {row['prefix']}"


_COUNT = whole(1)
_NUMBER = whole(0)
QUESTIONS = (
    Question(
        Flag("--document", read=_NUMBER, metavar="I", words="decode document I of a dataset", otherwise="do not"),
        *(_document, _document_lines),
    ),
    Question(
        Flag("--sample", read=_NUMBER, metavar="I", words="decode training sample I of a blend", otherwise="do not"),
        *(_sample, _sample_lines, True),
    ),
    Question(
        Flag("--statistics", words="count documents, tokens and lengths of a dataset"),
        *(_statistics, _statistics_lines),
    ),
    Question(
        Flag("--search", read=str, metavar="TEXT", words="find documents that hold this text", otherwise="do not"),
        *(_search, _search_lines),
    ),
    Question(
        Flag("--validate", words="check every token of a dataset; exit code 1 if there is a fault"),
        *(_validate, _validate_lines),
    ),
    Question(
        Flag(
            "--plan",
            read=_COUNT,
            metavar="TOKENS",
            words="say how many epochs of each dataset a run of so many tokens reads",
            otherwise="do not",
        ),
        *(_plan, _plan_lines, True),
    ),
)


def _attribute(name: str) -> str:
    """The parsed flag's attribute that holds this flag's value."""
    return name[2:].replace("-", "_")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Question]:
    """The flags and the one question. ConfigError for a flag that is wrong, and for none or several questions."""
    parser = Parser(
        description="Show what a .bin/.idx dataset holds, or what a run draws from datasets.", allow_abbrev=False
    )
    rows = [*(question.flag for question in QUESTIONS), *OF_THE_TRAINER, *OWN]
    for flag in rows:
        add(parser, flag)
    given = parser.parse_args(list(respelled(argv, [*(flag.name for flag in rows), "--help"])))
    asked = [question for question in QUESTIONS if getattr(given, question.flag.dest) is not None]
    names = ", ".join(question.flag.name for question in QUESTIONS)
    if len(asked) != 1:
        raise ConfigError(f"give exactly one of {names}; {len(asked)} are given")
    (question,) = asked
    if not given.data_path and given.load is None:
        raise ConfigError(
            f"--data-path is missing: it names the dataset (.bin and .idx) that {question.flag.name} reads"
        )
    if not question.of_blend and len(given.data_path or ()) > 1:
        raise ConfigError(
            f"--data-path {' '.join(given.data_path)}: {question.flag.name} reads one dataset; give one prefix"
        )
    idle = (() if question.of_blend else OF_A_BLEND) + (() if question.flag.name == "--search" else ("--limit",))
    for flag in rows:
        if flag.name in idle and getattr(given, flag.dest) is not None:
            raise ConfigError(f"{flag.name} does nothing with {question.flag.name}: leave it out")
    if given.iteration is not None and given.load is None:
        raise ConfigError(f"--iteration {given.iteration} names a checkpoint in --load: give --load too")
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
