"""A long curve in few points that hide nothing: of each stretch of iterations the mean, the least and the largest.

Neighbours: `charts` and `plot` draw them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Of each stretch of consecutive values; NaN where none of it is finite."""

    mean: np.ndarray
    least: np.ndarray
    largest: np.ndarray


def stretches(length: int, most: int) -> np.ndarray:
    """Where each of at most `most` stretches of `length` values begins: all but the last are as long."""
    return np.arange(0, length, max(-(-length // most), 1))


def envelope(values: np.ndarray, starts: np.ndarray) -> Envelope:
    """Mean, least and largest finite value of each stretch."""
    known = np.where(np.isfinite(values), values, np.nan)
    counts = np.add.reduceat(np.isfinite(values).astype(np.float64), starts)
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(np.nan_to_num(known), starts) / counts
    return Envelope(mean=mean, least=np.fmin.reduceat(known, starts), largest=np.fmax.reduceat(known, starts))


def smoothed(values: np.ndarray, span: float) -> np.ndarray:
    """Mean of all values so far, each weighted e times less every `span` values; what is not finite has no weight.

    The first values are not drawn towards zero: weights are normalized (the bias correction of Adam's moments).
    """
    keep = np.exp(-1 / span)
    total = weight = 0.0
    found = np.full(len(values), np.nan)
    for place, value in enumerate(values.tolist()):
        if np.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        if weight:
            found[place] = total / weight
    return found
