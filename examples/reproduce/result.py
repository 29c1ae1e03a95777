"""What the runs show: differences between curves in nats, bits per byte on held-out text, epochs, and one figure.

Neighbours: `__main__` makes the runs; `reporting` reads, draws and pages them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from examples.reproduce import corpus
from tinyllama_mcore.config import atomic
from tinyllama_mcore.data import receipt
from tinyllama_mcore.reporting import metrics_file, page
from tinyllama_mcore.reporting.metrics_file import Metrics, losses_by_dataset
from tinyllama_mcore.reporting.plot import plot_loss

LABELS = {
    "whole": "a: ZeRO-1, whole",
    "resharded": "b: stopped and resharded twice",
    "hugging-face": "c: Hugging Face + torch AdamW",
    "eos": "d: EOS over-inserted in the middle third",
}
"""Run -> its legend entry; each has its metrics in RUN.jsonl."""
PAIRS = (("whole", "resharded"), ("whole", "hugging-face"), ("resharded", "hugging-face"))
BOUNDS = {"fp32": 1e-5, "bf16": 0.2}
"""Precision -> nats by which curves a, b and c may differ. In bf16 on a GPU one run made twice differs by 0.12."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The numbers of a reproduction."""

    recipe: str
    precision: str
    train_tokens: int
    """Tokens that a run draws."""
    bound: float
    """Nats, of `BOUNDS`."""
    largest_difference: Mapping[str, float]
    """"a run - another" -> largest difference of the training loss, in nats, over the iterations that both made."""
    repeated: float
    """Largest difference between a and d, in nats, over the first third, where both are one run."""
    held_out_loss: Mapping[str, Mapping[str, float]]
    """Run -> kind -> nats a token at the end."""
    bits_per_byte: Mapping[str, Mapping[str, float]]
    """Run -> kind -> bits a byte of held-out UTF-8 text at the end."""
    epochs: Mapping[str, float]
    """Kind -> times that the whole run draws its training tokens."""
    eos_middle_loss: Mapping[str, float]
    """Run with and without planted EOS -> mean training loss of the middle third, in nats a token."""

    @property
    def within(self) -> bool:
        """Whether a, b and c are one curve."""
        return all(value <= self.bound for value in self.largest_difference.values())  # NaN is not


def difference(one: Metrics, other: Metrics) -> float:
    """Largest difference of the loss, in nats, over the iterations that both have; NaN where one of them is."""
    _, here, there = np.intersect1d(one.columns["iteration"], other.columns["iteration"], return_indices=True)
    return float(np.abs(one.columns["lm_loss"][here] - other.columns["lm_loss"][there]).max())


def bits_per_byte(loss: float, tokens: int, text_bytes: int) -> float:
    """Bits a byte of text whose `tokens` cost `loss` nats each."""
    return loss * tokens / text_bytes / math.log(2)


def _count(prefix: str) -> int:
    """Tokens of a pair, its EOD tokens among them."""
    made = receipt.read(prefix)
    assert made is not None
    return made.counts.tokens


def measure(home: Path, recipe: str, precision: str, seq_length: int, pairs: Mapping[str, str]) -> Result:
    """Read the runs in `home`. `pairs`: "text", "code" and each with "-held-out" -> dataset prefix."""
    runs = {name: metrics_file.read(home / f"{name}.jsonl") for name in LABELS}
    whole = runs["whole"]
    held_out: dict[str, dict[str, float]] = {}
    bits: dict[str, dict[str, float]] = {}
    sizes = {kind: corpus.text_bytes(home / "raw" / f"{kind}-held-out") for kind in corpus.OWN_ENDINGS}
    for name in ("whole", "resharded", "eos"):
        losses = dict(losses_by_dataset(runs[name].of("validation")[-1]))
        held_out[name] = {kind: losses[pairs[f"{kind}-held-out"]] for kind in sizes}
        bits[name] = {
            kind: bits_per_byte(loss, _count(pairs[f"{kind}-held-out"]), sizes[kind])
            for kind, loss in held_out[name].items()
        }
    part = len(whole) // 3
    first, middle = slice(part), slice(part, 2 * part)
    return Result(
        recipe=recipe,
        precision=precision,
        train_tokens=int(whole.columns["consumed_tokens"][-1]),
        bound=BOUNDS[precision],
        largest_difference={f"{one} - {other}": difference(runs[one], runs[other]) for one, other in PAIRS},
        repeated=float(np.abs(whole.columns["lm_loss"][first] - runs["eos"].columns["lm_loss"][first]).max()),
        held_out_loss=held_out,
        bits_per_byte=bits,
        epochs={kind: whole.samples[pairs[kind]][-1] * seq_length / _count(pairs[kind]) for kind in sizes},
        eos_middle_loss={name: float(runs[name].columns["lm_loss"][middle].mean()) for name in ("whole", "eos")},
    )


def write(home: Path, result: Result) -> None:
    """Write result.json, result.md, loss.png and report.html."""
    runs = [metrics_file.read(home / f"{name}.jsonl") for name in LABELS]
    named = [replace(run, label=label) for run, label in zip(runs, LABELS.values(), strict=True)]
    plot_loss(named, home / "loss.png", title=f"{result.recipe}, {result.precision}: three ways, and one bug")
    (home / "report.html").write_text(page.render(runs), encoding="utf-8")
    atomic.write_text(home / "result.json", json.dumps({**asdict(result), "within": result.within}, indent=2) + "\n")
    atomic.write_text(home / "result.md", markdown(result))


def markdown(result: Result) -> str:
    """The result for people."""
    pairs = [(name, f"{value:.2e}") for name, value in result.largest_difference.items()]
    scores = [
        (LABELS[name], *(f"{result.held_out_loss[name][kind]:.3f} / {bits:.3f}" for kind, bits in kinds.items()))
        for name, kinds in result.bits_per_byte.items()
    ]
    epochs = ", ".join(f"{count:.2f} of {kind}" for kind, count in result.epochs.items())
    middle = result.eos_middle_loss
    return f"""# {result.recipe} in {result.precision}, {result.train_tokens:,} tokens

![loss](loss.png)

Curves a, b and c {"are one curve" if result.within else "DIFFER"}: the bound is {result.bound:g} nats.

{_table(("curves", "largest difference, nats"), pairs)}

Up to the bug d is a made once more: there they differ by {result.repeated:.2e} nats at most.

Held-out documents, at the end (an estimate from the samples of one evaluation):

{_table(("run", *(f"{kind}: nats a token / bits a byte" for kind in result.epochs)), scores)}

Epochs: {epochs}. Training loss over the middle third: {middle["whole"]:.3f} nats a token, {middle["eos"]:.3f} with EOS
over-inserted, which are easy tokens: a lower training loss that is no better model.
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
