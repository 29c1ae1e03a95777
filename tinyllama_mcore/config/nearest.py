"""Legal numbers next to one that is not, spelled for a message.

Neighbours: `rules` and `deepspeed` refuse by these words.
"""

from __future__ import annotations


def divisors(number: int) -> str:
    """Every divisor of the number, from 1 up."""
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)


def nearest_multiples(number: int, unit: int) -> str:
    """The multiples of `unit` on both sides of the number; only `unit` where there is none below."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"
