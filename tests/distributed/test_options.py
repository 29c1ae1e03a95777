"""Flags that must not change what a run learns, and what they do beside."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.distributed import ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.data import indexed, receipt


def run(mode: Mode, home: Path, corpus: list[str], *more: str) -> tuple[list[dict], str]:
    """Six iterations with more flags: records and rank 0's output."""
    argv = [*flags(mode, home, corpus), "--exit-interval", "6", "--metrics-file", str(home / "metrics.jsonl"), *more]
    output = ranks.pretrain(argv, world_size=mode.world_size, logs=home / "logs")
    return ranks.metrics(home / "metrics.jsonl"), output


def assert_follows(records: list[dict], reference: list[tuple[float, float]]) -> None:
    """Losses within 2e-6, gradient norms within 1e-5 relative."""
    for record, (loss, norm) in zip(records, reference, strict=False):
        assert abs(record["lm_loss"] - loss) <= 2e-6
        assert abs(record["grad_norm"] - norm) <= 1e-5 * norm


def validation_losses(output: str) -> list[float]:
    """As logged."""
    return [float(loss) for loss in re.findall(r"validation loss (\d+\.\d+)", output)]


def test_evaluation_is_of_the_same_samples_in_every_layout(corpus: list[str], tmp_path: Path) -> None:
    """And it changes nothing: losses of training are those of a run that never evaluates."""
    split = ("--split", "80,20,0")
    evaluate = (*split, "--eval-interval", "3", "--eval-iters", "2")
    data, data_out = run(Mode(sharding="zero3"), tmp_path / "data", corpus, *evaluate)
    tensor, tensor_out = run(Mode(sharding="zero1", tp=2, dp=1, sp=True), tmp_path / "tensor", corpus, *evaluate)
    for mode in (
        Mode(sharding="fsdp-grad-op"),
        Mode(sharding="zero1", pp=2, vpp=2, dp=1),
        Mode(sharding="zero2", cp=2),
    ):
        records, out = run(mode, tmp_path / str(mode), corpus, *evaluate)
        assert validation_losses(out) == pytest.approx(validation_losses(data_out), abs=1.1e-4), mode
        assert [r["lm_loss"] for r in records] == pytest.approx([r["lm_loss"] for r in data], abs=2e-6), mode
    silent, _ = run(Mode(sharding="zero3"), tmp_path / "silent", corpus, *split)
    assert len(validation_losses(data_out)) == 2
    assert validation_losses(data_out) == pytest.approx(validation_losses(tensor_out), abs=1.1e-4)  # four digits shown
    assert [r["lm_loss"] for r in data] == [r["lm_loss"] for r in silent]
    assert [r["lm_loss"] for r in data] == pytest.approx([r["lm_loss"] for r in tensor], abs=2e-6)


@pytest.mark.parametrize(
    "mode",
    [
        Mode(sharding="zero3"),
        Mode(sharding="zero1", tp=2, sp=True, pp=2, dp=1),
        Mode(sharding="fsdp", pp=2, vpp=2, dp=1),
        Mode(sharding="zero1", cp=2, dp=1),
    ],
    ids=str,
)
def test_megatrons_own_layers_give_the_same_curve(
    mode: Mode, reference: list, corpus: list[str], tmp_path: Path
) -> None:
    """Fused layers are what every other test runs."""
    records, _ = run(mode, tmp_path, corpus, "--transformer-impl", "local")
    assert_follows(records, reference)


@pytest.mark.parametrize("granularity", ["selective", "full"])
@pytest.mark.parametrize(
    "mode",
    [
        Mode(sharding="zero1"),
        Mode(sharding="zero3", tp=2, dp=1, sp=True),
        Mode(sharding="fsdp", pp=2, dp=1),
        Mode(sharding="zero2", pp=2, vpp=2, dp=1),
        Mode(sharding="zero1", cp=2, dp=1),
    ],
    ids=str,
)
def test_recompute_changes_nothing(
    granularity: str, mode: Mode, reference: list, corpus: list[str], tmp_path: Path
) -> None:
    """Activations computed again give the same curve."""
    records, _ = run(mode, tmp_path, corpus, "--recompute-granularity", granularity)
    assert_follows(records, reference)


def test_only_the_latest_are_kept(corpus: list[str], tmp_path: Path) -> None:
    """--keep-latest 2 of six saves."""
    saved = tmp_path / "checkpoints"
    run(Mode(sharding="zero2"), tmp_path, corpus, "--save", str(saved), "--save-interval", "1", "--keep-latest", "2")
    assert layout.iterations(saved) == [5, 6]
    assert layout.unfinished(saved) == []


def test_a_lengthened_run_sees_the_samples_of_a_long_one(corpus: list[str], tmp_path: Path) -> None:
    """Past an epoch's end and saved on the way: the same samples as if it had been planned so.

    The learning rate is held (min_lr is reached at iteration 3 of both), so losses can be compared to the bit.
    """
    from tests.distributed.conftest import write_json
    from tests.distributed.recipe import RECIPE

    recipe = {**RECIPE, "optimizer": {**RECIPE["optimizer"], "lr_decay_iters": 3}}
    batch = ("--global-batch-size", "64", "--micro-batch-size", "16")

    def losses(home: Path, save: Path, iterations: int) -> list[float]:
        argv = [
            *flags(Mode(sharding="zero1"), home, corpus),
            *batch,
            "--train-iters",
            str(iterations),
            "--save",
            str(save),
        ]
        argv[argv.index("--recipe") + 1] = write_json(home / "held.json", recipe)
        metrics = home / "metrics.jsonl"
        ranks.pretrain([*argv, "--metrics-file", str(metrics)], world_size=2, logs=home / "logs")
        return [record["lm_loss"] for record in ranks.metrics(metrics)]

    whole = losses(tmp_path / "whole", tmp_path / "a", 10)  # 640 samples: more than one epoch of either dataset
    losses(tmp_path / "short", tmp_path / "b", 4)
    assert losses(tmp_path / "longer", tmp_path / "b", 10) == whole[4:]


def test_validation_on_datasets_of_its_own(corpus: list[str], tmp_path: Path) -> None:
    """The documents of a split, cut out into pairs of their own, teach and test the same; on training data: refused."""
    parts: dict[str, list[str]] = {"train": [], "valid": []}
    for weight, prefix in zip(corpus[::2], corpus[1::2], strict=True):
        whole = indexed.read(prefix)
        reader, last = indexed.TokenReader(whole), whole.documents * 8 // 10
        for part, documents in (("train", range(last)), ("valid", range(last, whole.documents))):
            tokens = [reader.read(document) for document in documents]
            parts[part] += [weight, str(tmp_path / f"{part}-{Path(prefix).name}")]
            with indexed.PairWriter(parts[part][-1], whole.dtype) as pair:
                pair.add(np.concatenate(tokens), np.array([len(each) for each in tokens]))
    slip = receipt.read(corpus[1])
    assert slip is not None
    evaluate = ("--tokenizer-model", slip.tokenizer_model, "--eval-interval", "3")
    mode = Mode(sharding="zero1")
    by_split, split_out = run(mode, tmp_path / "split", corpus, *evaluate, "--split", "80,20,0")
    alone, alone_out = run(mode, tmp_path / "alone", parts["train"], *evaluate, "--valid-data-path", *parts["valid"])
    assert [record["lm_loss"] for record in alone] == [record["lm_loss"] for record in by_split]
    assert validation_losses(alone_out) == validation_losses(split_out) != []
    argv = [*flags(mode, tmp_path, corpus), *evaluate, "--valid-data-path", corpus[1]]
    assert ranks.run(1, ranks._pretrain, argv, logs=tmp_path / "logs") == [2]
    assert f"{corpus[1]}: the run also trains on it, as {corpus[1]}" in (tmp_path / "logs" / "rank0.log").read_text()


def test_evaluation_without_samples_is_refused(corpus: list[str], tmp_path: Path) -> None:
    """--eval-interval where --split leaves nothing for it."""
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), "--eval-interval", "2", "--split", "100,0,0"]
    assert ranks.run(1, ranks._pretrain, argv, logs=tmp_path / "logs") == [2]
    assert "--eval-interval 2 needs validation samples" in (tmp_path / "logs" / "rank0.log").read_text()


ONE_GRAPH = (Mode(sharding="zero2"), Mode(sharding="zero1", tp=2, dp=1))
"""Modes whose graphs are counted."""


def _graphs(argv: list[str], home: Path) -> int:
    """Train, and write what torch.compile made of it on this rank: [graphs, breaks]."""
    from torch._dynamo.utils import counters

    from tinyllama_mcore.pretrain import main

    code = main(argv)
    made = [counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())]
    (home / f"graphs{os.environ['RANK']}.json").write_text(json.dumps(made))
    return code


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [
        *ONE_GRAPH,
        *(
            pytest.param(mode, marks=pytest.mark.layouts)
            for mode in (
                Mode(sharding="zero0", dp=1),
                Mode(sharding="zero1", dp=1),
                Mode(sharding="zero3"),
                Mode(sharding="zero3-offload"),
                Mode(sharding="fsdp"),
                Mode(sharding="fsdp-grad-op"),
                Mode(sharding="zero1", pp=2, dp=1),
                Mode(sharding="fsdp", pp=2, vpp=2, dp=1),
                Mode(sharding="zero1", cp=2, dp=1),
                Mode(sharding="zero2", tp=2),
                Mode(sharding="zero3", tp=2),
                Mode(sharding="fsdp", tp=2, pp=2, dp=1),
            )
        ),
    ],
    ids=str,
)
def test_compiled_layers_change_nothing(mode: Mode, reference: list, corpus: list[str], tmp_path: Path) -> None:
    """torch.compile of each decoder layer. ZeRO-2 is wrong if ranks compile other graphs than their neighbours.

    Of every layer one graph is made on every rank: shared by all layers, and cut nowhere.
    """
    metrics = tmp_path / "metrics.jsonl"
    argv = [*flags(mode, tmp_path, corpus), "--exit-interval", "6", "--metrics-file", str(metrics), "--compile"]
    codes = ranks.run(mode.world_size, _graphs, argv, tmp_path, logs=tmp_path / "logs", timeout=250)
    assert codes == [0] * mode.world_size, ranks._tails(tmp_path / "logs")
    assert_follows(ranks.metrics(metrics), reference)
    if mode in ONE_GRAPH:
        made = [json.loads((tmp_path / f"graphs{rank}.json").read_text()) for rank in range(mode.world_size)]
        assert made == [[1, 0], [1, 0]]


@pytest.mark.slow
@pytest.mark.layouts
@pytest.mark.parametrize("flag", ["--recompute-granularity selective", "--recompute-granularity full"])
@pytest.mark.parametrize("mode", [Mode(sharding="zero2"), Mode(sharding="zero1", tp=2, dp=1)], ids=str)
def test_compiled_layers_are_computed_again(
    mode: Mode, flag: str, reference: list, corpus: list[str], tmp_path: Path
) -> None:
    """Compiled and recomputed."""
    records, _ = run(mode, tmp_path, corpus, "--compile", *flag.split())
    assert_follows(records, reference)


def test_an_uneven_pipeline_changes_nothing(reference: list, corpus: list[str], tmp_path: Path) -> None:
    """Three layers on the first rank, one on the second."""
    records, _ = run(Mode(sharding="zero1", pp=2, dp=1), tmp_path, corpus, "--pipeline-num-layers", "3,1")
    assert_follows(records, reference)


@pytest.mark.parametrize("flag", ["--metrics-file", "--tensorboard-dir"])
def test_an_output_that_cannot_be_written_is_refused(flag: str, corpus: list[str], tmp_path: Path) -> None:
    """Before any process group, with one message."""
    (tmp_path / "file").write_text("")
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), flag, str(tmp_path / "file" / "below")]
    assert ranks.run(1, ranks._pretrain, argv, logs=tmp_path / "logs") == [2]
    told = (tmp_path / "logs" / "rank0.log").read_text()
    assert f"error: {flag}" in told
    assert "Traceback" not in told
