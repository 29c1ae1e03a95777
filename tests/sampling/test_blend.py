"""The order of samples: Megatron's own within its first epoch and block, and never a matter of how long the run is."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_indexed import write
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import DataConfig
from tinyllama_mcore.data.tokenizer import Vocabulary
from tinyllama_mcore.sampling import epochs, pattern
from tinyllama_mcore.sampling.blend import BlendedSamples, open_blend, refuse_training_data
from tinyllama_mcore.sampling.pattern import BlendPattern

VOCABULARY = Vocabulary(vocab_size=60_000, eod=2, sha256="0" * 64)
SEQ = 16
SEED = 1234


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Two datasets of some 900 and 300 samples, 0.7 to 0.3."""
    home = tmp_path_factory.mktemp("blend")
    rng = np.random.default_rng(1)
    large = write(home / "large", rng.integers(1, 150, 200).tolist(), vocab_size=60_000, seed=2)
    small = write(home / "small", rng.integers(1, 150, 70).tolist(), vocab_size=60_000, seed=3)
    return DataConfig(blend=((0.7, str(large)), (0.3, str(small))), cache_dir=str(home / "cache"))


def opened(data: DataConfig, count: int, *, split: str = "train", seed: int = SEED) -> BlendedSamples:
    """The samples of a run, with the first `count` prepared by this process alone."""
    samples = open_blend(data, split=split, seq_length=SEQ, seed=seed, vocabulary=VOCABULARY)
    assert samples is not None
    samples.prepare(0, count)
    return samples


def stream(samples: BlendedSamples, first: int, last: int) -> np.ndarray:
    """Tokens [samples, s + 1]: those of a sample and the label of its last."""
    rows = (samples[i] for i in range(first, last))
    return np.stack([np.append(row.tokens.numpy(), row.labels[-1].item()) for row in rows])


@pytest.mark.parametrize("split", ["train", "valid"])
def test_the_first_epoch_is_megatrons(data: DataConfig, tmp_path: Path, split: str) -> None:
    """The same tokens in the same order as Megatron's builder gives, as long as no dataset is drawn twice."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    counts = {"train": 700, "valid": 15}
    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=SEQ,
        blend=([prefix for _, prefix in data.blend], [weight for weight, _ in data.blend]),
        split="90,10,0",
        tokenizer=VOCABULARY,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    built = BlendedMegatronDatasetBuilder(GPTDataset, [*counts.values(), 0], lambda: True, config).build()
    theirs = built[list(counts).index(split)]
    ours = opened(
        DataConfig(blend=data.blend, split=(90.0, 10.0, 0.0), cache_dir=str(tmp_path)), counts[split], split=split
    )
    drawn = ours.consumed(counts[split])
    assert all(drawn[store.prefix] < store.samples_per_epoch for store in ours.stores)
    for i in range(counts[split]):
        assert ours[i].tokens.tolist() == theirs[i]["tokens"].tolist()
        assert ours[i].labels.tolist() == theirs[i]["labels"].tolist()


def test_the_order_does_not_depend_on_the_length_of_the_run(data: DataConfig, tmp_path: Path) -> None:
    """A run planned for 0.5, 2.5 and 8 epochs draws the same samples; Megatron's own order changes from the first."""
    lengths = (300, 2000, 8000)
    runs = [opened(DataConfig(blend=data.blend, cache_dir=str(tmp_path / str(length))), length) for length in lengths]
    for length, run in zip(lengths, runs, strict=True):
        np.testing.assert_array_equal(stream(run, 0, length), stream(runs[-1], 0, length))


def test_every_epoch_draws_each_sample_once_in_another_order(data: DataConfig) -> None:
    """Drawing more than a dataset holds starts its next, differently shuffled epoch; nothing is drawn twice before."""
    samples = opened(data, 8000)
    large = samples.stores[0]
    places = [place for place in map(samples.place, range(8000)) if place.dataset == 0]
    assert [place.epoch * large.samples_per_epoch + place.position for place in places] == list(range(len(places)))
    rows = [np.stack([large.sample(e, i)[0].numpy() for i in range(large.samples_per_epoch)]) for e in (0, 1, 2)]
    starts = [{row.tobytes() for row in epoch} for epoch in rows]
    assert all(len(found) == large.samples_per_epoch for found in starts)
    assert not np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[1], rows[2])
    tokens = [np.bincount(epoch.ravel(), minlength=60_000) for epoch in rows]
    for counts in tokens[1:]:  # the same tokens, but for what does not fill a sample at the end of each epoch
        assert np.abs(counts - tokens[0]).sum() <= 4 * SEQ


def test_the_seed_decides(data: DataConfig) -> None:
    """Another seed, another order; the same seed, the same."""
    first, again, other = opened(data, 100), opened(data, 100), opened(data, 100, seed=SEED + 1)
    np.testing.assert_array_equal(stream(first, 0, 100), stream(again, 0, 100))
    assert not np.array_equal(stream(first, 0, 100), stream(other, 0, 100))


def test_counts_are_exact(data: DataConfig) -> None:
    """Samples of each dataset among the first n, counted one by one; shares follow."""
    samples = opened(data, 1)
    for count in (0, 1, 17, 4000):
        drawn = [samples.place(i).dataset for i in range(count)]
        assert list(samples.consumed(count).values()) == [drawn.count(0), drawn.count(1)]
    large, small = samples.consumed(1_000_000).values()
    assert large + small == 1_000_000 and large == pytest.approx(700_000, abs=2)


def test_the_pattern_goes_on_after_its_block(data: DataConfig) -> None:
    """Beyond 2**20 samples it repeats, and each dataset goes on where it was."""
    laid_out = opened(data, 1).phases[0].pattern
    block = pattern.BLOCK
    before = laid_out.consumed(block)
    assert sum(before) == block
    for i in (0, 1, 2, 999):
        dataset, drawn = laid_out.place(i)
        assert laid_out.place(3 * block + i) == (dataset, drawn + 3 * before[dataset])
    assert laid_out.consumed(2 * block + 5) == tuple(
        2 * whole + part for whole, part in zip(before, laid_out.consumed(5), strict=True)
    )


@pytest.mark.parametrize("weights", [(0.7, -0.3), (1.0, 0.0), (0.0, 0.0), (1.0, 1e-7), (1.0, float("nan"))])
def test_weights_that_cannot_be_drawn_are_refused(weights: tuple[float, ...]) -> None:
    """Negative, zero, all zero, less than one sample in a block, no number."""
    with pytest.raises(ConfigError, match=r"--data-path: weight .* of dataset [12] cannot be drawn"):
        BlendPattern(weights)


def test_weights_are_shares() -> None:
    """70 and 30 are 0.7 and 0.3."""
    np.testing.assert_array_equal(BlendPattern((70, 30)).dataset, BlendPattern((0.7, 0.3)).dataset)


def test_rewritten_data_never_meets_an_old_index(tmp_path: Path) -> None:
    """The same prefix with other documents: what is drawn is what a fresh cache gives."""
    data = DataConfig(blend=((1.0, str(tmp_path / "d")),), split=(1.0, 0.0, 0.0))
    write(tmp_path / "d", [40, 50, 60], vocab_size=60_000)
    old = stream(opened(data, 9), 0, 9)
    write(tmp_path / "d", [60, 40, 50], vocab_size=60_000, seed=9)
    new = stream(opened(data, 9), 0, 9)
    fresh = opened(DataConfig(blend=data.blend, split=data.split, cache_dir=str(tmp_path / "fresh")), 9)
    assert not np.array_equal(old, new)
    np.testing.assert_array_equal(new, stream(fresh, 0, 9))


def test_indices_are_built_once_and_whole(data: DataConfig, tmp_path: Path) -> None:
    """A second run builds nothing; the rank that does not build waits, then reads; nothing partial stays behind."""
    config = DataConfig(blend=data.blend, cache_dir=str(tmp_path))
    waiting = open_blend(config, split="train", seq_length=SEQ, seed=SEED, vocabulary=VOCABULARY)
    assert waiting is not None
    opened(config, 2000)
    built = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert len(stream(waiting, 0, 2000)) == 2000
    opened(config, 2000)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == built
    assert not [path for path in built if "partial" in path.name]
    with pytest.raises(FileNotFoundError, match=r"epoch 9 of .* was not prepared"):
        waiting.stores[0].sample(9, 0)


def test_a_foreign_token_id_is_named(tmp_path: Path) -> None:
    """Data without a receipt: the sample that draws an id beyond the vocabulary ends the run, naming the document."""
    write(tmp_path / "d", [40, 50, 60], vocab_size=60_000)
    tokens = np.fromfile(tmp_path / "d.bin", dtype=np.uint16) % 500
    tokens[45] = 599
    tokens.tofile(tmp_path / "d.bin")
    data = DataConfig(blend=((1.0, str(tmp_path / "d")),), split=(1.0, 0.0, 0.0))
    samples = open_blend(
        data, split="train", seq_length=SEQ, seed=SEED, vocabulary=Vocabulary(vocab_size=599, eod=2, sha256="")
    )
    assert samples is not None
    samples.prepare(0, 9)
    with pytest.raises(ConfigError, match=r"document 1 of .*d\.bin holds token id 599, but the vocabulary is 0 to 598"):
        stream(samples, 0, 9)


def test_splits_do_not_overlap(data: DataConfig) -> None:
    """Contiguous documents that add up to all; a split without a share is None, one too small is refused."""
    shares = (90.0, 9.0, 1.0)
    ranges = [epochs.split_range(shares, split, 200) for split in epochs.SPLITS]
    assert ranges == [(0, 180), (180, 198), (198, 200)]
    assert open_blend(data, split="test", seq_length=SEQ, seed=SEED, vocabulary=VOCABULARY) is None
    tiny = DataConfig(blend=data.blend, split=(1000.0, 1.0, 0.0))
    with pytest.raises(
        ConfigError, match=r"the valid part of --split 1000,1,0 has 0 document\(s\), 0 tokens; one sample"
    ):
        open_blend(tiny, split="valid", seq_length=SEQ, seed=SEED, vocabulary=VOCABULARY)


def documents_drawn(samples: BlendedSamples, count: int) -> set[tuple[str, int]]:
    """Every document that any of the first samples has a token of."""
    samples.prepare(0, count)
    places = [samples.place(number) for number in range(count)]
    return {
        (samples.stores[place.dataset].prefix, span.document)
        for place in places
        for span in samples.stores[place.dataset].spans(place.epoch, place.position)
    }


def test_no_training_sample_overlaps_validation(data: DataConfig, tmp_path: Path) -> None:
    """By the documents of two epochs and more of each: with --split, and from datasets of their own. All are read."""
    separate = write(tmp_path / "held", [70] * 30, vocab_size=60_000, seed=5)
    alone = DataConfig(blend=data.blend, split=(100.0, 0.0, 0.0), valid_blend=((1.0, str(separate)),))
    for config in (DataConfig(blend=data.blend, split=(80.0, 20.0, 0.0)), alone):
        train, valid = opened(config, 0), opened(config, 0, split="valid")
        trained_on, held_out = documents_drawn(train, 3000), documents_drawn(valid, 700)
        assert not trained_on & held_out
        assert {prefix for prefix, _ in held_out} == {prefix for _, prefix in config.valid_blend or config.blend}
        assert len(trained_on | held_out) == 200 + 70 + 30 * len(config.valid_blend)  # every one there is


def test_validation_data_that_are_trained_on_are_refused(data: DataConfig, tmp_path: Path) -> None:
    """Under another name too: datasets are known by what is in them."""
    for ending in (".bin", ".idx"):
        shutil.copy(data.blend[1][1] + ending, tmp_path / f"copy{ending}")
    twin = DataConfig(blend=data.blend, split=(100.0, 0.0, 0.0), valid_blend=((1.0, str(tmp_path / "copy")),))
    with pytest.raises(ConfigError, match=r"--valid-data-path .*/copy: the run also trains on it, as .*/small; name"):
        refuse_training_data(opened(twin, 0), opened(twin, 0, split="valid"))


@pytest.mark.parametrize("way", ["the same", "another spelling", "a link", "a copy"])
def test_a_dataset_given_twice_is_refused(data: DataConfig, tmp_path: Path, way: str) -> None:
    """Its samples would come twice an epoch; by whatever name, to train on or to validate on."""
    _, prefix = data.blend[0]
    home, name = Path(prefix).parent, Path(prefix).name
    names = {"the same": prefix, "another spelling": f"{home}/../{home.name}/{name}"}
    other = names.get(way, str(tmp_path / "again"))
    if way not in names:
        for ending in (".bin", ".idx"):
            (shutil.copy if way == "a copy" else os.symlink)(f"{prefix}{ending}", f"{other}{ending}")
    twice = ((0.5, prefix), (0.5, other))
    for changed in (replace(data, blend=twice), replace(data, blend=twice[:1], valid_blend=twice)):
        split = "valid" if changed.valid_blend else "train"
        flag = "--valid-data-path" if changed.valid_blend else "--data-path"
        with pytest.raises(
            ConfigError, match=f"{flag}: .* is given twice.*; give it once, with the sum of its weights"
        ):
            open_blend(changed, split=split, seq_length=SEQ, seed=SEED, vocabulary=VOCABULARY)
