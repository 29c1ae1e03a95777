"""Loss and gradient norm say whether there was an update, and the result says why there was none."""

from __future__ import annotations

import math

import pytest

from tinyllama_mcore.engine.protocol import is_accepted, step_result

INF, NAN = math.inf, math.nan
CASES = [
    (2.0, 1.0, INF, None),
    (2.0, 1.0, 2.0, None),
    (2.0, 0.0, 2.0, None),
    (2.5, 1.0, 2.0, "loss 2.5000 is above 2.0000"),
    (2.5, INF, 2.0, "loss 2.5000 is above 2.0000"),
    (NAN, 1.0, INF, "loss nan is not finite"),
    (INF, 1.0, INF, "loss inf is not finite"),
    (-INF, 1.0, INF, "loss -inf is not finite"),
    (2.0, NAN, INF, "gradient norm nan is not finite"),
    (2.0, INF, INF, "gradient norm inf is not finite"),
]
"""Loss, gradient norm, largest loss, reason."""


@pytest.mark.parametrize(("loss", "norm", "largest", "reason"), CASES)
def test_a_result_says_why_there_was_no_update(loss: float, norm: float, largest: float, reason: str | None) -> None:
    """One reason, the loss's before the norm's; a norm that goes with a refused loss is not told."""
    result = step_result(loss, norm, largest)
    assert (result.skip_reason, result.skipped) == (reason, reason is not None)
    assert is_accepted(loss, largest) == (reason is None or reason.startswith("gradient"))
    assert math.isnan(result.grad_norm) if not is_accepted(loss, largest) else str(result.grad_norm) == str(norm)
