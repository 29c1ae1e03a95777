"""Names by which files are told apart."""

from __future__ import annotations

import pytest

from tinyllama_mcore.config.paths import told_apart


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([], []),
        (["data/text"], ["text"]),
        (["data/text", "data/code"], ["text", "code"]),
        (["a/text", "b/text", "a/code"], ["a/text", "b/text", "code"]),
        (["text", "b/text"], ["text", "b/text"]),
        (["/x/a/text", "/y/a/text"], ["x/a/text", "y/a/text"]),
    ],
)
def test_as_short_as_they_may_be(paths: list[str], names: list[str]) -> None:
    """The last part, and more where another path ends alike."""
    assert told_apart(paths) == names
