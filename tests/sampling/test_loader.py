"""Who takes which sample: every layout sees the same iteration, and a resumed run goes on where the other left."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.config.test_batch_sizes import megatrons
from tinyllama_mcore.config.schema import BatchConfig, DataConfig
from tinyllama_mcore.data import receipt
from tinyllama_mcore.parallel.alone import job_of_one
from tinyllama_mcore.parallel.mesh import Axis, Mesh
from tinyllama_mcore.sampling.blend import BlendedSamples, open_blend
from tinyllama_mcore.sampling.loader import PREPARED_AHEAD, BatchSource, TokenBatch

SEQ = 16
GLOBAL = 24


@pytest.fixture(scope="module")
def samples(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> BlendedSamples:
    """A blend of two datasets."""
    data = DataConfig(
        blend=((0.7, corpus[1]), (0.3, corpus[3])), cache_dir=str(tmp_path_factory.mktemp("cache")), split=(1, 0, 0)
    )
    vocabulary = receipt.vocabulary_of([corpus[1], corpus[3]], None)
    opened = open_blend(data, split="train", seq_length=SEQ, seed=1, vocabulary=vocabulary)
    assert opened is not None
    opened.prepare(0, 10 * GLOBAL)
    return opened


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """Of one process."""
    with job_of_one() as mesh:
        yield mesh


def source(samples: BlendedSamples, mesh: Mesh, *, dp: tuple[int, int], micro: int) -> BatchSource:
    """Batches of one (rank, size) of the data-parallel axis."""
    batch = BatchConfig(seq_length=SEQ, micro_batch_size=micro, global_batch_size=GLOBAL, train_iters=10)
    axis = Axis(rank=dp[0], size=dp[1], group=mesh.data.group)
    return BatchSource(samples, batch, replace(mesh, data=axis), None)


def rows(iteration: list[TokenBatch]) -> list[bytes]:
    """The samples of an iteration."""
    return [row.numpy().tobytes() for batch in iteration for row in batch.tokens]


def test_shapes_and_shift(samples: BlendedSamples, mesh: Mesh) -> None:
    """[b, s] of int64, labels one token ahead."""
    (iteration,) = list(source(samples, mesh, dp=(0, 2), micro=4).iterations(0, 1))
    assert len(iteration) == 3
    for batch in iteration:
        assert batch.tokens.shape == batch.labels.shape == (4, SEQ)
        assert batch.tokens.dtype == batch.labels.dtype == torch.int64
        assert torch.equal(batch.tokens[:, 1:], batch.labels[:, :-1])


@pytest.mark.parametrize(("size", "micro"), [(1, 1), (1, 24), (2, 4), (3, 2), (4, 3), (24, 1)])
def test_an_iteration_is_the_same_in_every_layout(samples: BlendedSamples, mesh: Mesh, size: int, micro: int) -> None:
    """Known bugs 4 and 7: all ranks together draw global_batch_size different samples, the same ones in any layout."""
    expected = [[samples[i].tokens.numpy().tobytes() for i in range(k * GLOBAL, (k + 1) * GLOBAL)] for k in range(5)]
    ranks = [list(source(samples, mesh, dp=(rank, size), micro=micro).iterations(0, 5)) for rank in range(size)]
    for k, whole in enumerate(expected):
        drawn = [row for rank in ranks for row in rows(rank[k])]
        assert sorted(drawn) == sorted(whole)
        assert len({samples.place(i) for i in range(k * GLOBAL, (k + 1) * GLOBAL)}) == GLOBAL


def test_micro_batches_are_taken_as_megatrons_sampler_does(samples: BlendedSamples, mesh: Mesh) -> None:
    """Micro-batch m of rank r holds the samples consumed + m x (micro x ranks) + r x micro + j."""
    (iteration,) = list(source(samples, mesh, dp=(1, 2), micro=3).iterations(48, 1))
    expected = [48 + m * 6 + 1 * 3 + j for m in range(4) for j in range(3)]
    assert rows(iteration) == [samples[i].tokens.numpy().tobytes() for i in expected]


def test_resuming_is_an_offset(samples: BlendedSamples, mesh: Mesh) -> None:
    """Known bug 5: from iteration 4 on, another layout included, a resumed run sees what the first would have seen."""
    whole = list(source(samples, mesh, dp=(0, 1), micro=8).iterations(0, 10))
    rest = list(source(samples, mesh, dp=(0, 1), micro=2).iterations(4 * GLOBAL, 6))
    assert [rows(iteration) for iteration in rest] == [rows(iteration) for iteration in whole[4:]]


@pytest.mark.parametrize(("size", "micro"), [(1, 1), (1, 4), (2, 2), (4, 1)])
@pytest.mark.parametrize(("begin", "first"), [(0, 0), (3, 12), (7, 68)])
def test_a_ramp_takes_the_next_samples_in_any_layout(
    samples: BlendedSamples, mesh: Mesh, size: int, micro: int, begin: int, first: int
) -> None:
    """Sizes are Megatron's at each number of consumed samples; together the iterations are one order, resumed too."""
    batch = BatchConfig(
        seq_length=SEQ, micro_batch_size=micro, global_batch_size=GLOBAL, train_iters=10, rampup_batch_size=(4, 4, 50)
    )
    whole = list(itertools.islice(megatrons(GLOBAL, (4, 4, 50)), 10))
    assert whole[begin][0] == first
    sizes = [count for _, count in whole[begin:]]
    ranks = [
        list(
            BatchSource(
                samples, batch, replace(mesh, data=Axis(rank=rank, size=size, group=mesh.data.group)), None
            ).iterations(first, len(sizes))
        )
        for rank in range(size)
    ]
    start = first
    for number, count in enumerate(sizes):
        drawn = [row for rank in ranks for row in rows(rank[number])]
        assert sorted(drawn) == sorted(samples[i].tokens.numpy().tobytes() for i in range(start, start + count))
        start += count


def test_a_batch_that_does_not_divide_is_ours_to_prevent(samples: BlendedSamples, mesh: Mesh) -> None:
    """config.rules refuses it in the user's words; here it is an invariant."""
    with pytest.raises(ValueError, match="micro-batches of 5 on 1 ranks do not make up a global batch of 24"):
        source(samples, mesh, dp=(0, 1), micro=5)


def test_indices_are_built_ahead(samples: BlendedSamples, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first iteration and every `PREPARED_AHEAD` of them, and never past the last."""
    built = []
    monkeypatch.setattr(samples, "prepare", lambda first, end, **_: built.append((first, end)))
    monkeypatch.setattr(BatchSource, "_micro_batch", lambda self, start: start)
    count, ahead = PREPARED_AHEAD + 3, PREPARED_AHEAD * GLOBAL
    read = source(samples, mesh, dp=(0, 1), micro=8).iterations(48, count)
    assert next(read) == [48, 56, 64]
    assert built == [(48, 48 + ahead)]
    assert len(list(read)) == count - 1
    assert built == [(48, 48 + ahead), (48 + ahead, 48 + count * GLOBAL)]
