"""What a user sees while a run trains: what stands in a line, how wide it is, and what is said more rarely."""

from __future__ import annotations

import io
import math

import pytest

from tests.training.test_loggers import meter, record
from tinyllama_mcore.checkpoint.manifest import Event
from tinyllama_mcore.config.batch_sizes import Ramp
from tinyllama_mcore.config.schema import BatchConfig
from tinyllama_mcore.training.console import COLUMNS, ConsoleLogger, describe_peak
from tinyllama_mcore.training.metrics import StepRecord, Validation
from tinyllama_mcore.training.stragglers import straggler_of


def console(train_iters: int, interval: int, device: str | None = "NVIDIA H200") -> tuple[ConsoleLogger, io.StringIO]:
    """A logger at five to noon, and what it prints."""
    return console_of(batch_of(train_iters), interval, device)


def batch_of(train_iters: int, ramp: Ramp | None = None) -> BatchConfig:
    """The batch of that job."""
    return BatchConfig(
        seq_length=128, micro_batch_size=4, global_batch_size=16, train_iters=train_iters, rampup_batch_size=ramp
    )


def console_of(batch: BatchConfig, interval: int, device: str | None) -> tuple[ConsoleLogger, io.StringIO]:
    """The same of any batch."""
    out = io.StringIO()
    return ConsoleLogger(meter(device), batch=batch, interval=interval, out=out, clock=lambda: "11:55:00"), out


def shown(logger: ConsoleLogger, out: io.StringIO, *records: StepRecord) -> list[str]:
    """The lines that some records give."""
    before = len(out.getvalue())
    for each in records:
        logger.step(each)
    return out.getvalue()[before:].splitlines()


def test_one_line_an_interval() -> None:
    """Averages over the interval; the rest of an interval at the end; the peak once."""
    logger, out = console(10, 2)
    for iteration, loss in enumerate([4.0, 3.0, 2.0], start=1):
        logger.step(record(iteration, loss))
    logger.evaluation(3, Validation(loss=1.0))
    logger.close()
    peak, first, memory, tokens, validation, rest = out.getvalue().splitlines()
    assert peak == "MFU is the share of 989.4 TFLOP/s, the dense bf16 peak of one NVIDIA H200"
    head = "11:55:00  iteration  2/10  loss 3.5000  norm 0.333  lr 4.00e-04  2,048 tokens/s/GPU  MFU 1.4%  ETA 0:00:04"
    assert first == head
    assert memory == " " * 10 + (
        "memory 0.00 GiB, 0.500 s an iteration, 14.3 TFLOP/s full (MFU 1.4%), 12.3 TFLOP/s causal (MFU 1.2%)"
    )
    assert tokens == " " * 10 + "tokens 4,096"
    assert validation == "11:55:00  iteration  3/10  validation loss 1.0000  perplexity 2.72"
    assert rest.startswith("11:55:00  iteration  3/10  loss 2.0000")


def test_in_a_ramp_the_time_left_counts_samples() -> None:
    """After 8 samples in a second, 80 are left, which take 10 s; eight iterations as fast as the first two take 4."""
    ramp = (4, 4, 48)
    logger, out = console_of(batch_of(10, ramp), 2, None)
    steps = [record(i, seconds=0.5, global_batch_size=4, consumed_samples=4 * i) for i in (1, 2)]
    sizes = [4, 4, 4, 4, 8, 8, 12, 12, 16, 16]
    assert batch_of(10, ramp).sizes.samples_before(10) == sum(sizes) == 88
    assert shown(logger, out, *steps)[0].endswith("ETA 0:00:10")


def test_a_cpu_has_no_gpu_and_no_mfu() -> None:
    """Neither word is printed; a GPU without a known peak says once that it has none."""
    logger, out = console(1, 1, device=None)
    lines = shown(logger, out, record(1, mfu=None, mfu_causal=None))
    assert "2,048 tokens/s  ETA" in lines[0]
    assert not [word for word in ("GPU", "MFU", "TFLOP") if word in out.getvalue()]
    assert describe_peak(meter("Some GPU")) == "no MFU is shown: no dense bf16 peak is known for Some GPU"
    logger, out = console(1, 1, device="Some GPU")
    assert "MFU" not in "".join(shown(logger, out, record(1, mfu=None, mfu_causal=None)))


EXTREMES = {
    "small": {"lm_loss": 1e-4, "grad_norm": 1.234e-5, "lr": 1e-9, "tokens_per_s_per_gpu": 0.1, "mfu": 0.0},
    "the paper's run": {"lm_loss": 10.3754, "grad_norm": 99_999.4, "tokens_per_s_per_gpu": 99_999.0, "mfu": 0.577},
    "diverged": {"lm_loss": math.inf, "grad_norm": math.nan, "tokens_per_s_per_gpu": 77_623.0, "mfu": 0.577},
    "a straggler": {"straggler": straggler_of([0.0012, 99.9], [1e-5, 12.0], ["h" * 63, "g" * 63])},
    "many datasets": {"consumed_tokens_by_dataset": {f"data/set_{n}_text_document": 10**12 + n for n in range(40)}},
}


@pytest.mark.parametrize("case", EXTREMES)
def test_no_line_is_wider_than_a_terminal(case: str) -> None:
    """Of a run as long as the paper's, at its first line, where most is said, and its last."""
    logger, out = console(1_430_512, 1)
    values = {
        "iteration_time_s": 20.0,
        "peak_memory_gib": 139.82,
        "tflops_per_gpu": 989.4,
        "consumed_tokens": 3 * 10**12,
        **EXTREMES[case],
    }
    lines = [line for n in (1, 1_426_500, 1_430_512) for line in shown(logger, out, record(n, **values))]
    assert max(map(len, lines)) <= COLUMNS
    for dataset in values.get("consumed_tokens_by_dataset", {}):
        assert dataset.removeprefix("data/") in "\n".join(lines)


def test_what_changes_slowly_is_said_now_and_then() -> None:
    """With the first line, every tenth after it, and the last: tokens of each dataset among it."""
    logger, out = console(25, 1)
    seen = {"a/text": 3000, "b/code": 1096}
    lines = shown(logger, out, *(record(n, consumed_tokens_by_dataset=seen) for n in range(1, 26)))
    at = [n for n, line in enumerate(lines) if "tokens 2,048" in line or "(MFU" in line]
    more = [line for line in lines if line.startswith(" " * 10)]
    assert len(more) == 2 * 4 and len(lines) == 25 + len(more) and at[0] == 1
    assert more[1] == " " * 10 + "tokens 2,048: text 3,000, code 1,096"
    assert lines[-1] == " " * 10 + "tokens 51,200: text 3,000, code 1,096"


def test_rates_are_weighted_by_time() -> None:
    """1024 tokens a process in 1 s and then in 3 s are 512 tokens/s, not the mean of 1024 and 341."""
    logger, out = console(9, 2)
    assert "  512 tokens/s/GPU" in shown(logger, out, record(1, seconds=1.0), record(2, seconds=3.0))[0]


def test_a_skipped_update_does_not_spoil_the_average() -> None:
    """A loss that is not finite has a line of its own."""
    logger, out = console(9, 2)
    skipped = record(2, float("nan"), skipped=True, skip_reason="loss nan is not finite")
    told, line, *_ = shown(logger, out, record(1, 2.0), skipped)
    assert told == "11:55:00  iteration 2/9  update skipped: loss nan is not finite"
    assert "loss 2.0000" in line


def test_saves_and_rollbacks() -> None:
    """Until the files were written, or until they were copied to be; the samples that are skipped."""
    logger, out = console(10, 2)
    logger.saved(5, 13.204, in_background=False)
    logger.saved(10, 0.6, in_background=True)
    reason = "3 updates skipped in a row; back to iteration 5"
    logger.went_back(Event(iteration=8, kind="rolled back", reason=reason, first_sample=40, end_sample=88), 5)
    assert out.getvalue().splitlines()[1:] == [
        "11:55:00  iteration  5/10  checkpoint written in 13.20 s",
        "11:55:00  iteration 10/10  checkpoint copied in 0.60 s, being written in the background",
        f"11:55:00  iteration  8/10  {reason}; samples 40 to 87 are skipped",
    ]
