"""The unigram entropy, by hand on small files and against the loss of a model that is fitted to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tinyllama_mcore.data.indexed import PairWriter
from tinyllama_mcore.reporting.entropy import unigram_entropy


def write(prefix: Path, tokens: list[int]) -> str:
    """One document."""
    with PairWriter(prefix, np.dtype(np.uint16)) as pair:
        pair.add(np.array(tokens), np.array([len(tokens)]))
    return str(prefix)


def test_even_tokens_have_the_log_of_their_number(tmp_path: Path) -> None:
    """Eight ids that come equally often: ln 8."""
    assert unigram_entropy([(1.0, write(tmp_path / "a", list(range(8)) * 5))], 16) == pytest.approx(np.log(8))


def test_weights_are_shares_of_the_blend(tmp_path: Path) -> None:
    """One id from each of two sets at 3 to 1: the entropy of (0.75, 0.25), however long the sets are."""
    blend = [(3.0, write(tmp_path / "a", [5])), (1.0, write(tmp_path / "b", [6] * 100))]
    assert unigram_entropy(blend, 16) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))


def test_it_is_the_loss_of_the_best_model_without_context(tmp_path: Path) -> None:
    """A bias alone, fitted by torch to the tokens, ends at the entropy and not below."""
    tokens = np.random.default_rng(0).zipf(1.5, size=2000) % 32
    expected = unigram_entropy([(1.0, write(tmp_path / "a", tokens.tolist()))], 32)
    target, bias = torch.tensor(tokens), torch.zeros(32, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=200, tolerance_change=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(bias.expand(len(target), -1), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() == pytest.approx(expected, abs=1e-3)
    assert closure().item() >= expected - 1e-6
