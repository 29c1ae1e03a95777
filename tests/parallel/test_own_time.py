"""A rank's own time, without a GPU: what it waits for others is not in it. The clock is real."""

from __future__ import annotations

import time

import pytest
import torch

from tinyllama_mcore.parallel.own_time import OwnTime

WORK_S, WAIT_S = 0.02, 0.5


def test_waits_are_left_out() -> None:
    """Two passes, one of which waits: both are counted, and the seconds are those between the waits."""
    own = OwnTime(torch.device("cpu"))
    with own.passing():
        time.sleep(WORK_S)
        with own.waiting():
            time.sleep(WAIT_S)
        time.sleep(WORK_S)
    own.begin()
    time.sleep(WORK_S)
    own.end()
    seconds, passes = own.read()
    assert passes == 2
    assert 3 * WORK_S <= seconds < WAIT_S
    assert own.read() == (0.0, 0)


def test_a_wait_outside_of_a_pass_is_nobodys() -> None:
    """A layer that is recomputed on the way back waits too, and is not measured there."""
    own = OwnTime(torch.device("cpu"))
    with own.waiting():
        time.sleep(WORK_S)
    assert own.read() == (0.0, 0)


def test_a_pass_that_was_left_in_the_middle_does_not_count() -> None:
    """The next one begins anew."""
    own = OwnTime(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), own.passing():
        time.sleep(WAIT_S)
        raise ZeroDivisionError
    with own.passing():
        pass
    seconds, passes = own.read()
    assert passes == 1 and seconds < WAIT_S
