"""One command-line option: its spelling, and the field of the schema that it sets, whose words and default it shows.

Neighbours: `flags` has the rows and the parser, `flag_values` the readers.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import KW_ONLY, MISSING, dataclass, fields
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from tinyllama_mcore.config.flag_values import quantity, whole

_READERS: dict[type, Callable[[str], Any] | None] = {bool: None, str: str, int: whole(1), float: quantity}


@dataclass(frozen=True)
class Flag:
    """One option: a row that names its field of the schema and adds how it is spelled.

    Parsers have the default None throughout: "not given", which the schema, the recipe or the JSON then fills.
    """

    name: str
    """As it is spelled in the help."""
    kind: type | None = None
    """Dataclass of the schema that the value goes into; None: into none."""
    field: str = ""
    """Its field there; "": the one of the flag's own name."""
    _: KW_ONLY
    words: str = ""
    """What it sets, with the unit; "": what the field says."""
    otherwise: str = ""
    """What holds where it is not given, in words; after the field's default where there is one."""
    read: Callable[[str], Any] | None = None
    """Value from its text; None: by the field's type, and a switch without a field."""
    metavar: str = "N"
    choices: tuple[str, ...] | None = None
    many: bool | int = False
    """Takes one value or more; a number: so many, each with a word of `metavar`."""
    repeats: bool = False
    """May be given more than once; the value is a list."""
    negatable: bool = False
    """A switch that also has a `--no-` form."""
    aliases: tuple[str, ...] = ()
    """Other spellings that are taken, such as Megatron-LM's."""

    @property
    def dest(self) -> str:
        """The attribute of the parsed flags that holds its value."""
        return self.name[2:].replace("-", "_")

    @property
    def target(self) -> str:
        """The field of `kind` that takes its value."""
        return self.field or self.dest

    @property
    def help(self) -> str:
        """What it sets, with the unit."""
        return self.words or _field(self.kind, self.target).words

    @property
    def default(self) -> str:
        """What holds where it is not given: the schema's value, words, or both."""
        return "; ".join(filter(None, (shown(self.value), self.otherwise)))

    @property
    def value(self) -> object:
        """The default of its field, and False of a switch without one; None where the schema has no value."""
        if self.kind is None:
            return None if self.read else False
        return _field(self.kind, self.target).default

    @property
    def reader(self) -> Callable[[str], Any] | None:
        """Value from its text; None: a switch, which takes none."""
        return self.read if self.read or self.kind is None else _READERS[_field(self.kind, self.target).type]


class _Field(NamedTuple):
    """What the schema says of a field."""

    type: type
    words: str
    """What it sets, with the unit; "" where a docstring says it."""
    default: object
    """None where it has none, too."""


@functools.cache
def _field(kind: type, name: str) -> _Field:
    """A field of a dataclass, by its annotation `Annotated[type, words]`."""
    hint = get_type_hints(kind, include_extras=True)[name]
    plain, *words = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if get_origin(plain) is types.UnionType:
        plain = get_args(plain)[0]  # `int | None` is read as an int
    default = next(field.default for field in fields(kind) if field.name == name)
    return _Field(plain, "".join(words), None if default is MISSING else default)


def shown(value: object) -> str:
    """A default as the help shows it."""
    if value is None or isinstance(value, bool):
        return {None: "", False: "off", True: "on"}[value]
    numbers = value if isinstance(value, tuple) else (value,)
    return ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in numbers)
