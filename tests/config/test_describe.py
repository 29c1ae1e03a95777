"""The printed arithmetic, and the record that a checkpoint keeps."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tinyllama_mcore.config import describe
from tinyllama_mcore.config.schema import ConfigError, RunConfig


def test_the_arithmetic_of_the_paper(make_run: Callable[..., RunConfig]) -> None:
    """16 GPUs, micro batch 8, accumulation 8, 2,097,152 tokens, 3.0 T tokens."""
    run = make_run("--recipe", "tinyllama-1.1b", "--data-path", "7", "text", "3", "code", world=16, judge=False)
    told = describe.lines(run, parameters=1_100_048_384, dataset_tokens={"text": 700_000_000_000})
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
    told = describe.lines(make_run(gpu=False))
    assert "vocabulary of the tokenizer" in told[1]
    assert told[-1] == "note         no --recipe given: tinyllama-debug, as there is no GPU here"


def test_a_run_survives_its_record(make_run: Callable[..., RunConfig]) -> None:
    """Equal to the last bit of its floats."""
    run = make_run("--lr", "0.1234567890123456789", "--data-path", "1", "a", "2", "b", gpu=False, judge=False)
    again = describe.from_json(describe.to_json(run), "run.json")
    assert again == run
    assert again.data.blend[0][0].hex() == (1 / 3).hex()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "run.json, line 1, column 2: not JSON"),
        ("{}", "run.json: the key 'recipe' is missing"),
        ("[]", r"run.json: expected an object"),
    ],
)
def test_a_broken_record_is_refused(text: str, expected: str) -> None:
    """With its file named."""
    with pytest.raises(ConfigError, match=expected):
        describe.from_json(text, "run.json")


def test_a_record_of_another_shape_is_refused(make_run: Callable[..., RunConfig]) -> None:
    """A checkpoint of another version says which key it does not share."""
    plain = json.loads(describe.to_json(make_run()))
    plain["data"]["split"] = [99, 1]
    with pytest.raises(ConfigError, match=r"run\.json: data: split: expected 3 values, got 2"):
        describe.from_json(json.dumps(plain), "run.json")
    plain["data"]["split"] = [99, 1, 0]
    plain["layout"]["pipeline"] = 2
    with pytest.raises(ConfigError, match=r"run\.json: layout: unknown key 'pipeline'"):
        describe.from_json(json.dumps(plain), "run.json")
