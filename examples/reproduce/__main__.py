"""The paper's recipe in small, on real text and code, as one command.

    python -m examples.reproduce [--toy] [--output runs/reproduce] [--text DIR --code DIR] [--tokenizer-model FILE]

One run is made whole, once more stopped and resharded twice, once more by an independent loop, and once more with the
paper's own bug in its data. Every command is printed as you would type it. A second start continues: what is done is
not done again. Neighbours: `corpus` makes the documents, `result` says what came out, `examples/demo.py` is shorter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from examples import demo
from examples.reproduce import corpus, planted, result
from tinyllama_mcore.config import recipes
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import unwritable
from tinyllama_mcore.data import receipt
from tinyllama_mcore.preprocessing import sample_corpus

SETTINGS = "settings.json"
"""Stands in the directory of a reproduction: what it was started with."""
WEIGHTS = {"text": sample_corpus.SLIMPAJAMA_WEIGHT, "code": sample_corpus.STARCODER_WEIGHT}
"""Kind -> share of the samples."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a reproduction is."""

    recipe: str
    train_iters: int
    """A multiple of 3: a run has three parts."""
    lr_warmup_iters: int
    vocabulary: int
    """Pieces of the tokenizer that is trained."""


REAL = Size(recipe="tinyllama-120m", train_iters=420, lr_warmup_iters=40, vocabulary=32_000)
TOY = Size(recipe="tinyllama-debug", train_iters=60, lr_warmup_iters=10, vocabulary=1_024)
OWN = {"text": demo.REPOSITORY / "docs", "code": demo.REPOSITORY / "tinyllama_mcore"}
"""Kind -> what the toy size reads: this checkout."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the processes share a part of a run."""

    config: str
    """Of ds_configs/."""
    flags: tuple[str, ...] = ()


ONE_GPU = (Layout(config="zero1"), Layout(config="fsdp"), Layout(config="zero3"))
TWO_PROCESSES = (
    Layout(config="zero1"),
    Layout(config="fsdp", flags=("--tensor-model-parallel-size", "2")),
    Layout(config="zero3"),
)


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What is done, and where."""

    home: Path
    size: Size
    tokenizer: Path
    directories: dict[str, Path] | None
    """Kind -> directory of documents; None: Debian's packages."""
    gpu: bool

    def prefix(self, name: str) -> str:
        """The dataset of that name."""
        return f"{self.home / 'data' / name}_text_document"

    def blend(self, ending: str = "") -> tuple[str, ...]:
        """W1 P1 W2 P2, as --data-path takes them."""
        return tuple(word for kind, weight in WEIGHTS.items() for word in (str(weight), self.prefix(kind + ending)))

    def once(self, name: str, step: Callable[[], object]) -> None:
        """Do a step, unless an earlier start has finished it."""
        done = self.home / "done" / name
        if not done.exists():
            step()
            done.parent.mkdir(exist_ok=True)
            done.touch()


def documents(job: Reproduction) -> None:
    """Raw text and code, each with its held-out part."""
    for kind in WEIGHTS:
        if job.directories is None:
            roots = corpus.fetch(kind, job.home / "packages")
        else:
            roots = iter([(job.directories[kind], corpus.OWN_ENDINGS[kind])])
        corpus.write(kind, roots, job.home / "raw")


def tokenizer(job: Reproduction) -> None:
    """A Llama-style tokenizer, trained on the first part of each kind."""
    first = {kind: job.home / "raw" / kind / "part-000.jsonl" for kind in WEIGHTS}
    raw = sample_corpus.RawCorpus(slimpajama=first["text"], starcoder=first["code"])
    sample_corpus.train_tokenizer(raw, job.tokenizer, job.size.vocabulary)


def dataset(job: Reproduction, name: str) -> None:
    """Raw documents to .bin/.idx."""
    demo.run(
        "python", "tools/preprocess_data.py", "--input", job.home / "raw" / name,
        "--output-prefix", job.home / "data" / name, "--tokenizer-model", job.tokenizer,
        "--append-eod", "--workers", "2", "--overwrite",
    )  # fmt: skip


def plant(job: Reproduction) -> None:
    """The training data once more, with too many EOD tokens."""
    for kind in WEIGHTS:
        made = receipt.read(job.prefix(kind))
        assert made is not None
        planted.over_insert(job.prefix(kind), made.eod, Path(job.prefix(f"{kind}-eos")))


def train(job: Reproduction, name: str, layout: Layout, *flags: str | Path) -> None:
    """A run, or a part of one; started again it resumes from its checkpoints."""
    third = str(job.size.train_iters // 3)
    demo.run(
        "deepspeed", "--quiet", "--num_gpus", "1" if job.gpu else "2", "--master_port", str(demo.free_port()),
        "examples/pretrain_tinyllama.py", "--deepspeed_config", f"ds_configs/{layout.config}.json", *layout.flags,
        "--recipe", job.size.recipe, "--train-iters", str(job.size.train_iters),
        "--lr-warmup-iters", str(job.size.lr_warmup_iters), "--tokenizer-model", job.tokenizer,
        "--data-path", *job.blend(), "--valid-data-path", *job.blend("-held-out"), "--eval-interval", third,
        "--save", job.home / name, "--save-interval", third, "--metrics-file", job.home / f"{name}.jsonl",
        "--log-interval", "20", *flags,
    )  # fmt: skip


def resharded(job: Reproduction, second: Layout, third: Layout) -> None:
    """From the first third of the whole run on under two other layouts."""
    part = job.size.train_iters // 3
    begin = ("--load", job.home / "whole", "--iteration", str(part))
    stop = ("--exit-interval", str(2 * part))
    job.once("resharded-second", lambda: train(job, "resharded", second, *begin, *stop))
    job.once("resharded-third", lambda: train(job, "resharded", third))


def independent(job: Reproduction) -> None:
    """The run by Hugging Face's model and torch's AdamW."""
    demo.run(
        "python", "-m", "examples.reproduce.loop", "--recipe", job.size.recipe,
        "--train-iters", str(job.size.train_iters), "--lr-warmup-iters", str(job.size.lr_warmup_iters),
        "--metrics-file", job.home / "hugging-face.jsonl", "--data-path", *job.blend(),
    )  # fmt: skip


def reproduce(job: Reproduction) -> result.Result:
    """All steps in order, from the repository."""
    first, second, third = ONE_GPU if job.gpu else TWO_PROCESSES
    part = job.size.train_iters // 3
    job.once("documents", lambda: documents(job))
    if not job.tokenizer.exists():
        tokenizer(job)
    names = [f"{kind}{ending}" for kind in WEIGHTS for ending in ("", "-held-out")]
    for name in names:
        job.once(f"dataset-{name}", partial(dataset, job, name))
    job.once("planted", lambda: plant(job))
    job.once("whole", lambda: train(job, "whole", first))
    resharded(job, second, third)
    job.once("hugging-face", lambda: independent(job))
    later = ("--data-path-from", str(part), *job.blend("-eos"), "--data-path-from", str(2 * part), *job.blend())
    job.once("eos", lambda: train(job, "eos", first, *later))
    recipe = recipes.load(job.size.recipe)
    prefixes = {name: job.prefix(name) for name in names}
    found = result.measure(job.home, job.size.recipe, recipe.precision, recipe.batch.seq_length, prefixes)
    result.write(job.home, found)
    return found


def opened(given: argparse.Namespace) -> Reproduction:
    """The reproduction that the flags describe, begun or gone on with.

    Raises:
        ConfigError: flags that do not fit, or --output is of something else.
    """
    import torch

    gpu = torch.cuda.is_available()
    toy = given.toy or not gpu
    size = TOY if toy else REAL
    if given.train_iters is not None:
        size = replace(size, train_iters=given.train_iters)
    if size.train_iters < 3 * size.lr_warmup_iters / 2 or size.train_iters % 3:
        least = 3 * -(-size.lr_warmup_iters // 2)
        raise ConfigError(
            f"--train-iters {size.train_iters}: a run has three equal parts and {size.lr_warmup_iters} iterations of "
            f"warm-up: give a multiple of 3, {least} or more"
        )
    where = "one GPU" if gpu else "two processes on the CPU, as this machine has no GPU"
    print(f"{size.recipe}, {size.train_iters} iterations, in {where}", flush=True)
    if (given.text is None) != (given.code is None):
        raise ConfigError("--text and --code go together: give a directory for each, or neither")
    own = OWN if toy else None
    directories = own if given.text is None else {"text": given.text, "code": given.code}
    for kind, directory in (directories or {}).items():
        if not directory.is_dir():
            raise ConfigError(f"--{kind} {directory} is no directory: name one with documents below it")
    home = demo.seen_from_here(given.output)
    job = Reproduction(
        home=home,
        size=size,
        tokenizer=given.tokenizer_model or home / "tokenizer.model",
        directories=directories,
        gpu=gpu,
    )
    _claim(job)
    return job


def _claim(job: Reproduction) -> None:
    """Make the directory, or see that it was begun with the same settings. ConfigError where it was not."""
    settings = json.loads(
        json.dumps({name: value for name, value in vars(job).items() if name != "home"}, default=_plain)
    )
    if problem := unwritable(job.home):
        raise ConfigError(f"--output {job.home} cannot be written ({problem}): name a writable directory")
    kept = job.home / SETTINGS
    if kept.is_file():
        if json.loads(kept.read_text(encoding="utf-8")) != settings:
            raise ConfigError(
                f"--output {job.home} holds a reproduction of other settings ({kept}): name a new directory"
            )
    elif job.home.exists() and (not job.home.is_dir() or any(job.home.iterdir())):
        raise ConfigError(f"--output {job.home} holds something else than a reproduction: name a new directory")
    job.home.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    """How JSON holds a path or a size."""
    return str(value) if isinstance(value, Path) else vars(value)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(prog="reproduce", description="The paper's recipe in small, three ways.")
    home = demo.REPOSITORY / "runs/reproduce"
    parser.add_argument("--output", type=demo.absolute, default=home, help="directory (default: runs/reproduce)")
    parser.add_argument("--toy", action="store_true", help="the toy size (default: where there is no GPU)")
    parser.add_argument(
        "--train-iters", type=int, help=f"iterations (default: {REAL.train_iters}; toy: {TOY.train_iters})"
    )
    parser.add_argument("--text", type=demo.absolute, help="directory of text (default: Debian's; toy: docs/)")
    parser.add_argument("--code", type=demo.absolute, help="directory of code (default: Debian's; toy: the package)")
    parser.add_argument(
        "--tokenizer-model", type=demo.absolute, help="SentencePiece model (default: one is trained on the corpus)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Reproduce; 1 where a command failed or curves differ, 2 for a user's mistake."""
    given, start = parse(argv), time.monotonic()
    try:
        with contextlib.chdir(demo.REPOSITORY):  # so that the commands read as they would be typed there
            job = opened(given)
            found = reproduce(job)
    except ConfigError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    except demo.CommandFailed as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 1
    print(f"\n{result.markdown(found)}\nThis start took {time.monotonic() - start:.0f} s: {job.home}/result.md")
    return 0 if found.within else 1


if __name__ == "__main__":
    sys.exit(main())
