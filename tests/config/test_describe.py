"""The printed arithmetic."""

from __future__ import annotations

from collections.abc import Callable

from tinyllama_mcore.config import describe
from tinyllama_mcore.config.schema import RunConfig


def test_the_arithmetic_of_the_paper(make_run: Callable[..., RunConfig]) -> None:
    """16 GPUs, micro batch 8, accumulation 8, 2,097,152 tokens, 3.0 T tokens."""
    run = make_run("--recipe", "tinyllama-1.1b", "--data-path", "7", "text", "3", "code", world=16, judge=False)
    told = describe.lines(run, parameters=1_100_048_384, dataset_epochs={"text": (3.0, 700_000_000_000)})
    assert told[1].endswith("32 heads in 4 groups, vocabulary 32,000; 1,100,048,384 parameters")
    assert told[2].startswith("world        16 = tensor parallel 1 x data parallel 16")
    assert told[3].endswith(
        "micro batch 8 x accumulation 8 x data parallel 16; x 2,048 tokens = 2,097,152 tokens an iteration"
    )
    assert told[4] == "length       1,430,512 iterations = 3,000,001,101,824 tokens"
    assert "lr 0.0004 after 2,000 iterations of warm-up, cosine to 4e-05 at 1,430,512" in told[5]
    assert told[6].startswith("sharding     ZeRO 1, bf16, gradients accumulated in fp32")
    assert told[7] == "data         0.7000 of samples from text: 3.00 epochs of 700,000,000,000 tokens"
    assert told[8] == "data         0.3000 of samples from code"


def test_what_was_chosen_for_the_user_is_said_last(make_run: Callable[..., RunConfig]) -> None:
    """Notes stand at the end."""
    told = describe.lines(make_run("--save", "out", gpu=False))
    assert "vocabulary of the tokenizer" in told[1]
    assert told[-1] == "note         no --recipe given: tinyllama-debug, as there is no GPU here"
