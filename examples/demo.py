"""The main job in front of your eyes, on any machine: raw text to a Hugging Face model that writes, in minutes.

    python examples/demo.py [--output runs/demo] [--tokenizer-model tokenizer.model] [--train-iters N]

Every command is printed as you would type it. The run fails unless the model has learned from context: its last loss
must lie well below the unigram entropy of the corpus, which is what knowing how often each token comes is worth.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.flags import add, named
from tinyllama_mcore.config.paths import unwritable
from tinyllama_mcore.data import receipt
from tinyllama_mcore.preprocessing import sample_corpus
from tinyllama_mcore.reporting import page
from tinyllama_mcore.reporting.entropy import unigram_entropy
from tinyllama_mcore.reporting.metrics_file import Metrics, read
from tinyllama_mcore.reporting.plot import plot_loss

REPOSITORY = Path(__file__).resolve().parents[1]
VOCABULARY = 2048
"""Pieces of the tokenizer that is trained here."""
WEIGHTS = (0.7, 0.3)
"""Shares of text and of code in the samples."""
MARGIN = 0.5
"""Nats a token by which the last loss must lie below the unigram entropy."""
LAST = 10
"""Iterations that the last loss is averaged over."""
PROMPT = "The module provides a"
MARKER = ".made-by-demo"
"""Stands in the directory of a demo: only such a directory is emptied."""


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Everything a demo leaves behind, in one directory."""

    home: Path

    @property
    def tokenizer(self) -> Path:
        """SentencePiece model that the demo trains."""
        return self.home / "tokenizer.model"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the training run."""
        return self.home / "checkpoints"

    @property
    def metrics(self) -> Path:
        """JSON lines, one an iteration."""
        return self.home / "metrics.jsonl"

    @property
    def picture(self) -> Path:
        """The loss curve."""
        return self.home / "loss.png"

    @property
    def page(self) -> Path:
        """What the run did, for a browser."""
        return self.home / "report.html"

    @property
    def model(self) -> Path:
        """The Hugging Face model."""
        return self.home / "hf"


class CommandFailed(RuntimeError):
    """A command of the demo did not end with exit code 0."""


def run(*command: str | Path) -> None:
    """Print a command and run it: `python` is this one, another program is the Python script that stands beside it."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    script = [] if words[0] == "python" else [str(Path(sys.executable).with_name(words[0]))]
    if (code := subprocess.run([sys.executable, *script, *words[1:]], check=False).returncode) != 0:
        raise CommandFailed(f"exit code {code} from: {shlex.join(words)}")


def prepare(home: Path, *, overwrite: bool) -> Paths:
    """Make an empty directory for the demo; with `overwrite`, what an earlier demo left there is removed.

    Raises:
        ConfigError: the directory holds something else, or an earlier demo that may not be removed, or cannot be made.
    """
    if problem := unwritable(home):
        raise ConfigError(f"--output {home} cannot be written ({problem}): name a writable directory")
    if home.exists() and not (home / MARKER).exists() and (not home.is_dir() or any(home.iterdir())):
        raise ConfigError(f"--output {home} holds something else than an earlier demo: name a new directory")
    if (home / MARKER).exists() and not overwrite:
        raise ConfigError(f"--output {home} holds an earlier demo: name a new directory, or give --overwrite")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / MARKER).touch()
    return Paths(home=home)


def processes() -> int:
    """Two, or one on a machine with a single GPU."""
    import torch

    return min(torch.cuda.device_count() or 2, 2)


def free_port() -> int:
    """A port for the ranks to meet at, so that two demos on one machine do not collide."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_data(paths: Paths, tokenizer_model: Path | None) -> tuple[Path, list[tuple[float, str]]]:
    """Raw files, tokenizer, and one .bin/.idx pair for text and one for code: the tokenizer's path and the blend."""
    print("\nRaw files in the shapes of SlimPajama and StarCoder, from the text that Python itself carries", flush=True)
    raw = sample_corpus.write_raw(paths.home / "raw", VOCABULARY)
    if tokenizer_model is None:
        print(f"A Llama-style SentencePiece tokenizer of {VOCABULARY} pieces, trained on them", flush=True)
        sample_corpus.train_tokenizer(raw, paths.tokenizer, VOCABULARY)
    tokenizer = tokenizer_model or paths.tokenizer
    prefixes = []
    without_github = ("--exclude-set", sample_corpus.GITHUB_SET)  # StarCoder has the code; its rows name no set
    for folder, flags in ((raw.slimpajama, without_github), (raw.starcoder, ())):
        prefix = paths.home / "data" / folder.name
        run(
            "python", "tools/preprocess_data.py",
            "--input", folder, "--output-prefix", prefix, "--tokenizer-model", tokenizer,
            "--append-eod", "--workers", "2", *flags,
        )  # fmt: skip
        prefixes.append(f"{prefix}_text_document")
    return tokenizer, list(zip(WEIGHTS, prefixes, strict=True))


def pretrain(paths: Paths, tokenizer: Path, blend: Sequence[tuple[float, str]], train_iters: int | None) -> None:
    """Train the debug recipe under DeepSpeed ZeRO-3, two processes where the machine has them."""
    run(
        "deepspeed", "--quiet", "--num_gpus", str(processes()), "--master_port", str(free_port()),
        "examples/pretrain_tinyllama.py", "--deepspeed_config", "ds_configs/zero3.json", "--recipe", "tinyllama-debug",
        "--tokenizer-model", tokenizer, "--data-path", *(str(word) for pair in blend for word in pair),
        "--save", paths.checkpoints, "--metrics-file", paths.metrics, "--log-interval", "10",
        *(("--train-iters", str(train_iters)) if train_iters else ()),
    )  # fmt: skip


def export_and_write(paths: Paths, tokenizer: Path) -> None:
    """Merge the checkpoint into a Hugging Face model, and let plain transformers continue a sentence with it."""
    run(
        "python", "tools/merge_to_hf.py",
        "--load", paths.checkpoints, "--output", paths.model, "--tokenizer-model", tokenizer,
    )  # fmt: skip
    run(
        "python", "-c",
        "from transformers import pipeline; "
        f'write = pipeline("text-generation", model="{paths.model}"); '
        f'print(write("{PROMPT}", max_new_tokens=40)[0]["generated_text"])',
    )  # fmt: skip


def last_loss(curve: Metrics) -> float:
    """Mean loss of the last iterations."""
    return float(curve.columns["lm_loss"][-LAST:].mean())


def report(paths: Paths, blend: Sequence[tuple[float, str]]) -> bool:
    """Draw the curve and the page, say where everything is, and whether the model has learned from context."""
    made = receipt.read(blend[0][1])
    if made is None:
        raise ConfigError(f"{blend[0][1]} has no receipt")
    entropy = unigram_entropy(blend, made.vocab_size)
    curve = read(paths.metrics)
    plot_loss([curve], paths.picture, title="tinyllama-debug", levels={"unigram entropy of the corpus": entropy})
    paths.page.write_text(page.render([curve]), encoding="utf-8")
    learned = last_loss(curve) < entropy - MARGIN
    print(f"""
first loss        {curve.columns["lm_loss"][0]:.3f} nats a token
last loss         {last_loss(curve):.3f} (mean of the last {LAST} of {len(curve)} iterations)
unigram entropy   {entropy:.3f} of the corpus; the last loss must be {MARGIN} below it: {"yes" if learned else "NO"}

data              {paths.home / "data"}
tokenizer         {made.tokenizer_model}
checkpoints       {paths.checkpoints}
metrics           {paths.metrics}
loss curve        {paths.picture}
page of the run   {paths.page}
HF model          {paths.model}""")
    return learned


def demonstrate(given: argparse.Namespace) -> bool:
    """All steps in order, from the repository: whether the model has learned."""
    paths = prepare(seen_from_here(given.output), overwrite=given.overwrite)
    tokenizer, blend = make_data(paths, given.tokenizer_model)
    pretrain(paths, tokenizer, blend, given.train_iters)
    export_and_write(paths, tokenizer)
    return report(paths, blend)


def seen_from_here(path: Path) -> Path:
    """An absolute path, made relative where it lies in the repository."""
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path


def absolute(text: str) -> Path:
    """A path as the caller of the demo means it."""
    return Path(text).resolve()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The demo's flags."""
    parser = argparse.ArgumentParser(description="From raw text to a Hugging Face model that writes.")
    parser.add_argument(
        "--output", type=absolute, default=REPOSITORY / "runs/demo", help="directory (default: runs/demo)"
    )
    tokenizer = replace(named("--tokenizer-model"), words="SentencePiece model", read=absolute)
    add(parser, replace(tokenizer, otherwise="one is trained on the corpus"))
    add(parser, named("--train-iters"))
    parser.add_argument("--overwrite", action="store_true", help="remove an earlier demo there (default: refuse)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 1 where a command failed or nothing was learned, 2 for a user's mistake."""
    given, start = parse(argv), time.monotonic()
    try:
        with contextlib.chdir(REPOSITORY):  # so that the commands read as they would be typed there
            learned = demonstrate(given)
    except ConfigError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except CommandFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(f"\nThe whole job took {time.monotonic() - start:.0f} s.")
    return 0 if learned else 1


if __name__ == "__main__":
    sys.exit(main())
