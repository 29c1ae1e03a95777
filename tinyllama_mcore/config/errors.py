"""How a program ends that does not end well: by a user's mistake, or by a run that cannot continue."""

from __future__ import annotations


class ConfigError(ValueError):
    """A user's mistake: what is wrong, where, the rule, the nearest legal value. It ends a program with exit code 2."""


class RunFailed(RuntimeError):
    """The run cannot continue; the message says why and where it was last saved. The program ends with exit code 1."""


class RankFailed(RunFailed):
    """The run cannot continue, and only this rank knows: it prints the message itself, whichever rank it is."""
