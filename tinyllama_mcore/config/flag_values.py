"""A flag's value from its text, or a refusal that states the rule.

Neighbour: `flags` names one of these in each of its rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def number(text: str, rule: str) -> float:
    """A finite number, `4e-4` or `0.0004`, or a refusal that states the rule."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be {rule}; got {text!r}")
    return value


def quantity(text: str) -> float:
    """A number of any size."""
    return number(text, "a number, such as 4e-4")


def whole(least: int) -> Callable[[str], int]:
    """Reader of a whole number, `3000`, `3_000` or `3e3`, that is at least `least`."""
    rule = f"a whole number, at least {least}"

    def read(text: str) -> int:
        value = number(text, rule)
        if value != int(value) or value < least:
            raise argparse.ArgumentTypeError(f"must be {rule}; got {text!r}")
        return int(text) if text.lstrip("+-").replace("_", "").isdigit() else int(value)

    return read


def from_zero(what: str) -> Callable[[str], float]:
    """Reader of a number that is at least 0; `what` says of what, in the plural."""
    rule = f"a number of {what}, at least 0"

    def read(text: str) -> float:
        value = number(text, rule)
        if value < 0:
            raise argparse.ArgumentTypeError(f"must be {rule}; got {text!r}")
        return value

    return read


def shares(text: str) -> tuple[float, ...]:
    """Three shares, `99,1,0`."""
    rule = "three shares, train,validation,test, none negative and the first above 0, such as 99,1,0"
    found = tuple(number(part, rule) for part in text.split(","))
    if len(found) != 3 or min(found) < 0 or found[0] <= 0:
        raise argparse.ArgumentTypeError(f"must be {rule}; got {text!r}")
    return found


def interval(text: str) -> tuple[int, int]:
    """First and last iteration, `10:12`."""
    rule = "A:B, the first and the last iteration, such as 10:12"
    first, colon, last = text.partition(":")
    try:
        found = whole(1)(first), whole(1)(last)
    except argparse.ArgumentTypeError:
        found = (1, 0)
    if not colon or found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"must be {rule}; got {text!r}")
    return found


def layers(text: str) -> tuple[int, ...]:
    """Whole numbers, `6,6,5,5`."""
    read = whole(1)
    return tuple(read(part) for part in text.split(","))
