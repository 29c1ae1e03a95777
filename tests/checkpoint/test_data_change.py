"""A blend that changes at a checkpoint: nothing of the datasets that stay is drawn twice or left out, however often."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.test_indexed import write
from tinyllama_mcore.checkpoint import compatibility
from tinyllama_mcore.checkpoint.manifest import Checkpoint, Manifest, Provenance, RunState
from tinyllama_mcore.config.data_config import DataConfig, LaterBlend
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data.tokenizer import Vocabulary
from tinyllama_mcore.sampling.blend import BlendedSamples, open_blend
from tinyllama_mcore.sampling.pattern import BlendPattern
from tinyllama_mcore.sampling.sample_order import SampleOrder

VOCABULARY = Vocabulary(vocab_size=600, eod=2, sha256="0" * 64)
SEQ = 16
Weights = dict[str, float]
BLENDS: tuple[tuple[Weights, int], ...] = (
    ({"a": 0.7, "b": 0.3}, 100),
    ({"c": 0.5, "a": 0.5}, 170),  # one leaves, one comes, one stays at another place and weight
    ({"a": 0.2, "b": 0.8}, 700),  # one comes back
    ({"a": 0.3, "b": 0.7}, 731),
)
"""Weights of a run's blends, and the samples after which each ends."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets of some 100 to 300 samples."""
    home = tmp_path_factory.mktemp("change")
    for seed, (name, documents) in enumerate({"a": 70, "b": 60, "c": 25}.items()):
        write(home / name, np.random.default_rng(seed).integers(1, 150, documents).tolist(), seed=seed)
    return home


def opened(home: Path, weights: Weights) -> BlendedSamples:
    """A blend as a run's first."""
    blend = tuple((weight, str(home / name)) for name, weight in weights.items())
    data = DataConfig(blend=blend, split=(1.0, 0.0, 0.0), cache_dir=str(home / "cache"))
    samples = open_blend(data, split="train", seq_length=SEQ, seed=1, vocabulary=VOCABULARY)
    assert samples is not None
    return samples


def order(samples: BlendedSamples, weights: Weights) -> SampleOrder:
    """What a checkpoint keeps, as JSON gives it back."""
    kept = SampleOrder(
        seed=1,
        seq_length=SEQ,
        split=(1.0, 0.0, 0.0),
        tokenizer_sha256=VOCABULARY.sha256,
        inter_document_masking=False,
        weights=tuple(weights.values()),
        datasets=samples.datasets,
        history=samples.history,
    )
    read = SampleOrder.from_plain(json.loads(json.dumps(kept.to_plain())))
    assert read == kept
    return read


def saved(samples: BlendedSamples, weights: Weights, consumed: int) -> Manifest:
    """The manifest of a run that drew so many samples."""
    state = RunState(iteration=consumed, consumed_samples=consumed)
    provenance = Provenance(versions={}, order=order(samples, weights))
    return Manifest(state=state, run={}, provenance=provenance, parameters=1, kinds=())


def gone_on(home: Path, manifest: Manifest, weights: Weights, *, may_change: bool = True) -> BlendedSamples:
    """The samples of a run that goes on from a checkpoint."""
    samples, consumed = opened(home, weights), manifest.state.consumed_samples
    history = compatibility.blend_history(Checkpoint(home, manifest), order(samples, weights), may_change=may_change)
    return samples.after(history, consumed)


def runs(home: Path) -> list[tuple[BlendedSamples, int, int]]:
    """The samples of each of `BLENDS`, from its first to its end."""
    weights, end = BLENDS[0]
    found = [(opened(home, weights), 0, end)]
    for following, next_end in BLENDS[1:]:
        found.append((gone_on(home, saved(found[-1][0], weights, end), following), end, next_end))
        weights, end = following, next_end
    return found


def test_nothing_is_repeated_and_nothing_left_out(home: Path) -> None:
    """Each dataset's own samples come one after the other over all blends, epochs included, and are its own tokens."""
    drawn = defaultdict(list)
    for samples, first, last in runs(home):
        samples.prepare(first, last)
        for number in range(first, last):
            place = samples.place(number)
            store = samples.stores[place.dataset]
            drawn[Path(store.prefix).name].append(place.epoch * store.samples_per_epoch + place.position)
            alone = store.sample(place.epoch, place.position)
            assert torch.equal(samples[number].tokens, alone[0]) and torch.equal(samples[number].labels, alone[1])
    assert all(numbers == list(range(len(numbers))) for numbers in drawn.values())
    last_blend, _, end = runs(home)[-1]
    assert last_blend.consumed(end) == {str(home / name): len(numbers) for name, numbers in drawn.items()}
    epochs = last_blend.epochs(end)
    assert max(count for count, _ in epochs.values()) > 1
    assert {prefix: round(count * tokens / SEQ) for prefix, (count, tokens) in epochs.items()} == {
        str(home / name): len(drawn[name]) for name in "ab"
    }


def test_counts_are_a_closed_form(home: Path) -> None:
    """The sum of what each blend's pattern gives; the words at the start say the same."""
    expected: defaultdict[str, int] = defaultdict(int)
    first = 0
    for (weights, end), (samples, _, _) in zip(BLENDS, runs(home), strict=True):
        for name, count in zip(weights, BlendPattern(tuple(weights.values())).consumed(end - first), strict=True):
            expected[str(home / name)] += count
        assert samples.consumed(end) == expected and sum(expected.values()) == end
        first = end
    told = runs(home)[1][0].told()
    a, b = runs(home)[0][0].phases[0].pattern.consumed(100)
    where = (home / "c", home / "a", home / "b")
    assert (
        told == f"changed at sample 100: {where[0]} is new, {where[1]} continues after {a} samples, "
        f"{where[2]} is dropped after {b} samples"
    )


def test_the_next_resumption_goes_on_exactly(home: Path) -> None:
    """From any checkpoint after the change, with the flag or without, and where the files lie elsewhere meanwhile."""
    samples, first, last = runs(home)[1]
    weights = BLENDS[1][0]
    (home / "moved").mkdir(exist_ok=True)
    for file in home.glob("?.*"):
        shutil.copy(file, home / "moved")
    for consumed in (first, first + 33):
        for where, may_change in ((home, False), (home, True), (home / "moved", False)):
            again = gone_on(where, saved(samples, weights, consumed), weights, may_change=may_change)
            assert [again.place(i) for i in range(first, last)] == [samples.place(i) for i in range(first, last)]


def test_a_dataset_made_anew_is_a_new_one(home: Path, tmp_path: Path) -> None:
    """Under the old name it begins at its first sample; counts by name add up."""
    weights = {"a": 0.5, "b": 0.5}
    for file in home.glob("?.*"):
        shutil.copy(file, tmp_path)
    before = saved(opened(tmp_path, weights), weights, 100)
    write(tmp_path / "b", [90] * 40, seed=9)
    with pytest.raises(
        ConfigError, match=r"b\.idx has changed since the checkpoint; .*b\.bin has changed.*--allow-data-change"
    ):
        gone_on(tmp_path, before, weights, may_change=False)
    after = gone_on(tmp_path, before, weights)
    assert after.seen == (50, 0)
    assert after.consumed(120) == {str(tmp_path / "a"): 60, str(tmp_path / "b"): 60}


def test_what_is_refused(home: Path) -> None:
    """A change without the flag, which is named; another seed with it, which no flag allows."""
    weights, other = {"a": 0.5, "b": 0.5}, {"a": 0.6, "b": 0.4}
    manifest = saved(opened(home, weights), weights, 10)
    allowed = r"blend weights are .* in the checkpoint and .* in this command\. Give .*, change .* --allow-data-change,"
    with pytest.raises(ConfigError, match=allowed):
        gone_on(home, manifest, other, may_change=False)
    for named, there in ((home / "b", home / "a"), (home / "a", home / "b")):
        with pytest.raises(ConfigError, match=rf"names another dataset, {named}, where the checkpoint has {there}"):
            gone_on(home, manifest, {"b": 0.5, "a": 0.5}, may_change=False)
    with pytest.raises(ConfigError, match=rf"names 1 {home}/c, the checkpoint has 0.5 {home}/a 0.5 {home}/b\."):
        gone_on(home, manifest, {"c": 1.0}, may_change=False)
    other_seed = replace(manifest.provenance.order, seed=2)
    reseeded = replace(manifest, provenance=replace(manifest.provenance, order=other_seed))
    with pytest.raises(
        ConfigError,
        match=r"seed is 2 in the checkpoint and 1 in this command\. Give the checkpoint\'s values, or start a new run",
    ):
        gone_on(home, reseeded, other)


def planned(home: Path, *, second_from: int = BLENDS[0][1]) -> BlendedSamples:
    """`BLENDS` as a run plans them at its start."""
    begins = [second_from, *(end for _, end in BLENDS[1:])]
    blends = [tuple((weight, str(home / name)) for name, weight in weights.items()) for weights, _ in BLENDS]
    later = tuple(LaterBlend(first_sample=first, blend=each) for first, each in zip(begins, blends[1:], strict=False))
    data = DataConfig(blend=blends[0], later_blends=later, split=(1.0, 0.0, 0.0), cache_dir=str(home / "cache"))
    samples = open_blend(data, split="train", seq_length=SEQ, seed=1, vocabulary=VOCABULARY)
    assert samples is not None
    return samples


def order_at(samples: BlendedSamples, consumed: int) -> SampleOrder:
    """What a checkpoint of a planned run keeps."""
    weights, datasets, history = samples.blend_at(consumed)
    start = order(opened(Path(datasets[0].prefix).parent, {"a": 1.0}), {"a": 1.0})
    return replace(start, weights=weights, datasets=datasets, history=history)


def resumed(home: Path, of: BlendedSamples, consumed: int, plan: BlendedSamples) -> BlendedSamples:
    """The samples of a run that resumes under `plan` from a checkpoint of the planned run `of`."""
    provenance = Provenance(versions={}, order=order_at(of, consumed))
    state = RunState(iteration=consumed, consumed_samples=consumed)
    manifest = Manifest(state=state, run={}, provenance=provenance, parameters=1, kinds=())
    return plan.after(compatibility.blend_history(Checkpoint(home, manifest), order_at(plan, consumed)), consumed)


def places(samples: BlendedSamples, first: int, last: int) -> list[tuple[str, int, int]]:
    """Prefix, epoch and position of each sample."""
    found = (samples.place(number) for number in range(first, last))
    return [(samples.prefixes[place.dataset], place.epoch, place.position) for place in found]


def test_what_is_planned_is_what_a_change_at_that_sample_gives(home: Path) -> None:
    """Sample by sample, and in the counts after each blend."""
    plan = planned(home)
    for samples, first, last in runs(home):
        assert places(plan, first, last) == places(samples, first, last)
        assert {prefix: count for prefix, count in plan.consumed(last).items() if count} == samples.consumed(last)
    assert plan.epochs(BLENDS[-1][1]).keys() == {str(home / name) for name in "abc"}


def test_a_planned_run_resumes_exactly(home: Path) -> None:
    """From a checkpoint anywhere, at the change itself too, and from one of a run that had resumed."""
    plan, end = planned(home), BLENDS[-1][1]
    for consumed in (0, 1, 99, 100, 101, 169, 170, 171, 500, 700, 715):
        again = resumed(home, plan, consumed, planned(home))
        assert places(again, consumed, end) == places(plan, consumed, end)
        assert again.consumed(end) == plan.consumed(end)
        for later in (consumed, min(consumed + 75, end)):
            third = resumed(home, again, later, planned(home))
            assert places(third, later, end) == places(plan, later, end)


def test_what_was_drawn_stays_where_the_plan_is_changed_behind_it(home: Path) -> None:
    """A blend that has begun began where the checkpoint says; one that had not is refused."""
    plan, end = planned(home), BLENDS[-1][1]
    for second_from in (50, 130):
        again = resumed(home, plan, 150, planned(home, second_from=second_from))
        assert places(again, 150, end) == places(plan, 150, end)
    with pytest.raises(ConfigError, match="was trained on samples in another order"):
        resumed(home, plan, 90, planned(home, second_from=50))
    unplanned = opened(home, BLENDS[0][0])  # the checkpoint of a run that had no plan, where the next blend begins
    assert places(resumed(home, unplanned, 100, planned(home)), 100, end) == places(plan, 100, end)
    moved = resumed(home, plan, 90, planned(home, second_from=120))
    assert places(moved, 100, 120) == places(opened(home, BLENDS[0][0]), 100, 120)
