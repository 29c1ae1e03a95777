"""Every variant of the model trains as Hugging Face's own class does, under each engine and along each axis.

A run that is saved under one layout is resumed under another, exported, and computed by transformers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.distributed import many, ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tests.distributed.recipe import BATCH, SAVED, SHOWN
from tests.distributed.test_curves import LOSS, NORM
from tests.distributed.variants import VARIANTS, recipe_of, shape_of

if TYPE_CHECKING:
    from tests.distributed.reference import Curve


class Case(NamedTuple):
    """A run of a variant."""

    variant: str
    mode: Mode
    layers: str = "fused"
    more: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join([self.variant, str(self.mode), self.layers, *[word.strip("-") for word in self.more]])


BY_ALL = (
    *(Mode(sharding=sharding) for sharding in ("zero1", "zero3", "fsdp")),
    Mode(sharding="zero1", tp=2, dp=1),
    Mode(sharding="zero1", pp=2, dp=1),
)
TENSOR, SEQUENCE = Mode(sharding="zero2", tp=2, dp=1), Mode(sharding="fsdp", tp=2, sp=True, dp=1)
PIPELINE, INTERLEAVED = Mode(sharding="zero2", pp=2, dp=1), Mode(sharding="fsdp", pp=2, vpp=2, dp=1)
CONTEXT, RECOMPUTE = Mode(sharding="zero1", cp=2, dp=1), ("--recompute-granularity", "full")
CASES = [
    *(Case(variant, mode) for variant in VARIANTS for mode in BY_ALL),
    *(Case("llama-3.2", mode) for mode in (PIPELINE, INTERLEAVED, CONTEXT, Mode(sharding="fsdp-grad-op"))),
    *(Case("llama-3.2", mode, "local") for mode in (Mode(sharding="zero3"), PIPELINE, INTERLEAVED)),
    *(Case("qwen-2.5", mode) for mode in (SEQUENCE, Mode(sharding="zero0"), Mode(sharding="zero2"))),
    *(Case("qwen-2.5", mode, "local") for mode in (TENSOR, SEQUENCE)),
    *(Case("qwen-3", mode) for mode in (SEQUENCE, CONTEXT, Mode(sharding="zero3-offload"))),
    *(Case("qwen-3", mode, "local") for mode in (Mode(sharding="fsdp"), SEQUENCE, CONTEXT)),
    Case("qwen-3", Mode(sharding="zero1", pp=2, dp=1), more=RECOMPUTE),
    Case("qwen-3", SEQUENCE, "local", RECOMPUTE),
]
"""What every variant is asked for, and each other way where its variant could go wrong."""
IN_BF16 = [
    Case(variant, mode)
    for variant, mode in itertools.product(
        ("qwen-2.5", "qwen-3"),
        (
            Mode(sharding="zero1", precision="bf16"),
            Mode(sharding="fsdp-grad-op", precision="bf16"),
            Mode(sharding="zero1", pp=2, dp=1, precision="bf16"),
        ),
    )
]
"""Layers that add gradients to an fp32 buffer, and a head that is another rank's."""
LAYOUTS = {
    "llama-3.2": (Mode(sharding="zero1", pp=2, dp=1), SEQUENCE),
    "qwen-2.5": (TENSOR, Mode(sharding="zero3")),
    "qwen-3": (Mode(sharding="fsdp"), PIPELINE),
}
"""Variant -> the layout that it is saved under, and the one that it resumes under."""


def argv(case: Case, home: Path, corpus: list[str], *more: str) -> list[str]:
    """The command line of a case."""
    words = flags(case.mode, home, corpus, recipe_of(case.variant))
    metrics = ("--metrics-file", str(home / "metrics.jsonl"))
    return [*words, *metrics, *case.more, *more, "--transformer-impl", case.layers]


def halves(home: Path, corpus: list[str]) -> Iterator[many.Run]:
    """Of each variant a run up to iteration `SAVED`, and the rest of it under another layout."""
    for variant, (first, second) in LAYOUTS.items():
        for part, mode, ends in (("first", first, ("--exit-interval", str(SAVED))), ("rest", second, ())):
            save = ("--save", str(home / variant / "checkpoints"), *ends)
            yield f"{variant} {part}", argv(Case(variant, mode), home / variant / part, corpus, *save)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Path:
    """Every run of this file, under its name, over two ranks that all share."""
    home = tmp_path_factory.mktemp("variants")
    ends = ("--exit-interval", str(SHOWN))
    runs = [(str(case), argv(case, home / str(case), corpus, *ends)) for case in (*CASES, *IN_BF16)]
    assert many.train([*runs, *halves(home, corpus)], home) == {}
    return home


@pytest.fixture(scope="module")
def right(corpus: list[str]) -> Callable[[str], Curve]:
    """The curve of Hugging Face's own class of a variant, under torch's AdamW."""
    from tests.distributed.reference import reference_curve, reference_model

    curves: dict[str, Curve] = {}

    def curve(variant: str) -> Curve:
        if variant not in curves:
            curves[variant] = reference_curve(corpus, model=reference_model(shape_of(variant)))
        return curves[variant]

    return curve


def assert_follows(records: list[dict], curve: Curve) -> None:
    """Losses within 2e-6, gradient norms within 1e-5 relative, in the iterations that there are."""
    for record in records:
        loss, norm = curve[record["iteration"] - 1]
        assert abs(record["lm_loss"] - loss) <= LOSS, record["iteration"]
        assert abs(record["grad_norm"] - norm) <= NORM * norm, record["iteration"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_curve_is_that_of_hugging_face(case: Case, trained: Path, right: Callable[[str], Curve]) -> None:
    """As far as any layout of TinyLlama's own model."""
    records = ranks.metrics(trained / str(case) / "metrics.jsonl")
    assert [record["iteration"] for record in records] == list(range(1, SHOWN + 1))
    assert_follows(records, right(case.variant))


@pytest.mark.parametrize("case", IN_BF16, ids=str)
def test_bf16_stays_in_the_noise(case: Case, trained: Path, right: Callable[[str], Curve]) -> None:
    """bf16 compute with fp32 masters; a gradient scale that is off by 2 % would be seen."""
    records, curve = ranks.metrics(trained / str(case) / "metrics.jsonl"), right(case.variant)
    pairs = zip(records, curve[:SHOWN], strict=True)
    assert max(abs(record["lm_loss"] - loss) for record, (loss, _) in pairs) < 5e-3
    assert abs(records[0]["grad_norm"] / curve[0][1] - 1) < 0.01


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_goes_on_under_another_layout(variant: str, trained: Path, right: Callable[[str], Curve]) -> None:
    """Moments of norms, biases and the one matrix of a tied model come back."""
    records = ranks.metrics(trained / variant / "rest" / "metrics.jsonl")
    assert [record["iteration"] for record in records] == list(range(SAVED + 1, BATCH["train_iters"] + 1))
    assert_follows(records, right(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_trained_is_exported(variant: str, trained: Path, corpus_tokenizer: Path, tmp_path: Path) -> None:
    """The exporter's own checks hold: bits, transformers' logits, and the run's probe; no head beside a tied one."""
    from transformers import AutoModelForCausalLM

    from tests.distributed.reference import CLASSES
    from tinyllama_mcore.hf.export import ExportJob, export

    job = ExportJob(
        load=trained / variant / "checkpoints", output=tmp_path / "hf", dtype="fp32", tokenizer_model=corpus_tokenizer
    )
    made = export(job)
    assert made.parity is not None
    assert made.replay is not None
    model, shape = AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), shape_of(variant)
    assert type(model) is CLASSES[shape.add_qkv_bias, shape.qk_layernorm][1]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters())
