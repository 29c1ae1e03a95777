"""Every mode has the loss curve of Hugging Face's model under torch's AdamW, to the last digits of fp32."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.distributed.conftest import Job
from tests.distributed.layouts import BF16_MODES, MODES, PRODUCT, Mode
from tests.distributed.recipe import BATCH, RECIPE


@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=[pytest.mark.layouts] * (m not in MODES)) for m in PRODUCT], ids=str
)
def test_curve_is_that_of_hugging_face(
    mode: Mode, reference: list[tuple[float, float]], job_of: Callable[[Mode], Job]
) -> None:
    """Losses within 2e-6 and gradient norms within 1e-5 relative, clipping active, over 20 iterations."""
    records = job_of(mode).metrics
    assert [r["iteration"] for r in records] == list(range(1, BATCH["train_iters"] + 1))
    assert max(norm for _, norm in reference) > RECIPE["optimizer"]["clip_grad"], "clipping must be at work"
    for record, (loss, norm) in zip(records, reference, strict=True):
        assert abs(record["lm_loss"] - loss) <= 2e-6, record["iteration"]
        assert abs(record["grad_norm"] - norm) <= 1e-5 * norm, record["iteration"]


@pytest.mark.parametrize("mode", BF16_MODES, ids=str)
def test_bf16_stays_in_the_noise(
    mode: Mode, reference: list[tuple[float, float]], job_of: Callable[[Mode], Job]
) -> None:
    """bf16 compute with fp32 masters follows the fp32 curve; a gradient scale that is off by 2 % would not."""
    records = job_of(mode).metrics
    assert max(abs(r["lm_loss"] - loss) for r, (loss, _) in zip(records, reference, strict=True)) < 5e-3
    assert abs(records[0]["grad_norm"] / reference[0][1] - 1) < 0.01


def test_consumption_is_counted_by_dataset(job_of: Callable[[Mode], Job], corpus: list[str]) -> None:
    """The checkpoint says how many sequences of each dataset were seen; they add up."""
    from tinyllama_mcore.checkpoint import layout, manifest

    job = job_of(MODES[0])
    state = manifest.read(layout.find(job.save)).state
    assert state.consumed_samples == sum(state.consumed_by_dataset.values()) == 160
    assert set(state.consumed_by_dataset) == {corpus[1], corpus[3]}
