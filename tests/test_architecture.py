"""The house, held by reading the code: levels, doors, sizes and the few things that are never done.

Each rule is a function from the parsed files of a tree to the sentences that say what breaks it. Each is shown to see
its fault: the fault is planted in a copy of the tree, and the rule must name it. CONTRIBUTING.md says why each stands.
"""

from __future__ import annotations

import ast
import graphlib
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "tinyllama_mcore"
ROOTS = (PACKAGE, "tools", "examples")

LEVELS = {
    "config": 0,
    "parallel": 1,
    "kernels": 1,
    "data": 1,
    "model": 2,
    "preprocessing": 2,
    "sampling": 2,
    "optim": 2,
    "engine": 3,
    "checkpoint": 4,
    "training": 5,
    "hf": 5,
    "planning": 5,
    "reporting": 5,
    "benchmarking": 5,
    "evaluation": 6,
    "preflight": 6,
    "run": 6,
    "pretrain": 7,
    "commands": 8,
    "__main__": 9,
    "tools": 9,
    "examples": 9,
}
"""Imports go down: a room may import the rooms on lower levels and itself."""

DOORS: dict[str, frozenset[str]] = {
    "megatron.training": frozenset(),
    "pickle": frozenset(),
    "deepspeed": frozenset({"engine", "benchmarking"}),
    "torch.distributed.fsdp": frozenset({"engine"}),
    "megatron.core.pipeline_parallel": frozenset({"engine"}),
    "megatron.core.parallel_state": frozenset({"parallel"}),
    "megatron.core.tensor_parallel": frozenset({"parallel", "model"}),
    "megatron.core.transformer": frozenset({"model", "benchmarking"}),
    "megatron.core.models": frozenset({"model", "benchmarking"}),
    "megatron.core.datasets": frozenset({"data", "sampling"}),
    "transformers": frozenset({"hf", "data", "benchmarking", "examples"}),
    "safetensors": frozenset({"hf", "checkpoint"}),
    "flash_attn": frozenset({"model"}),
    "triton": frozenset({"kernels"}),
    "quack": frozenset({"kernels"}),
    "fsspec": frozenset({"preprocessing"}),
    "lm_eval": frozenset({"evaluation"}),
    "os.environ": frozenset({"parallel"}),
    "os.getenv": frozenset({"parallel"}),
}
"""What may be imported or named only in these rooms. pyproject.toml tells ruff the same names."""

VAGUE_NAMES = frozenset({"utils", "common", "helpers", "misc", "manager"})
UNSAFE_KEYWORDS = frozenset({("weights_only", False), ("allow_pickle", True)})
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 7


@dataclass(frozen=True, kw_only=True)
class Module:
    """One parsed file."""

    path: str
    """Relative to the repository, with slashes."""
    name: str
    """As it is imported."""
    room: str
    """Key of LEVELS; empty for the package's own `__init__.py`."""
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        """Whether the file is an `__init__.py`."""
        return self.path.endswith("__init__.py")


def read(repository: Path) -> list[Module]:
    """Every Python file of the package, the tools and the examples."""
    modules = []
    for path in sorted(p for root in ROOTS for p in (repository / root).rglob("*.py")):
        relative = path.relative_to(repository)
        parts = relative.with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        inside = parts[1:] if parts[0] == PACKAGE else parts
        text = path.read_text(encoding="utf-8")
        modules.append(
            Module(
                path=relative.as_posix(),
                name=".".join(parts),
                room=inside[0] if inside else "",
                text=text,
                tree=ast.parse(text),
            )
        )
    return modules


def imports(module: Module) -> Iterator[str]:
    """Every dotted name that a file imports, at its top or inside a function, by statement or by string."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def is_within(name: str, prefix: str) -> bool:
    """Whether a dotted name is `prefix` or something inside it."""
    return name == prefix or name.startswith(f"{prefix}.")


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, nested ones too."""
    return (n for n in ast.walk(module.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def imports_go_down(modules: list[Module]) -> Iterator[str]:
    """A room imports lower levels and itself; siblings do not know each other; every room has a floor."""
    for module in modules:
        if module.room and module.room not in LEVELS:
            yield f"{module.path}: no level is given to {module.room}"
            continue
        for name in imports(module):
            if name.startswith("."):
                yield f"{module.path}: relative import of {name}"
            room = name.split(".")[1] if is_within(name, PACKAGE) and "." in name else module.room
            if room != module.room and LEVELS.get(room, 99) >= LEVELS.get(module.room, -1):
                yield f"{module.path}: imports {name}, which is not below {module.room}"


def foreign_libraries_have_one_door(modules: list[Module]) -> Iterator[str]:
    """A foreign library is spoken in one room."""
    for module in modules:
        named = {ast.unparse(n) for n in ast.walk(module.tree) if isinstance(n, ast.Attribute)}
        for name in sorted({*imports(module), *named}):
            for door, rooms in DOORS.items():
                if is_within(name, door) and module.room not in rooms:
                    yield f"{module.path}: {name} belongs in {' or '.join(sorted(rooms)) or 'no room'}"


def config_needs_the_standard_library_only(modules: list[Module]) -> Iterator[str]:
    """Every refusal of a wrong configuration works where nothing is installed."""
    for module in modules:
        if module.room == "config":
            foreign = {name.split(".")[0] for name in imports(module)} - {*sys.stdlib_module_names, PACKAGE}
            yield from (f"{module.path}: {name} is not in the standard library" for name in sorted(foreign))


def no_cycles(modules: list[Module]) -> Iterator[str]:
    """The files import each other in one direction, lazy imports included."""
    names = {module.name for module in modules}
    graph = {
        module.name: {name for i in imports(module) for name in (i, i.rpartition(".")[0]) if name in names}
        - {module.name}
        for module in modules
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"cycle: {' -> '.join(error.args[1])}"


def init_files_hold_a_docstring_alone(modules: list[Module]) -> Iterator[str]:
    """Re-exports tie knots: a name is imported from where it is defined. The package's own has its version too."""
    for module in modules:
        if not module.is_package:
            continue
        rest = [ast.unparse(node).partition(" = ")[0] for node in module.tree.body[1:]]
        if ast.get_docstring(module.tree) is None or rest != (["__version__"] if module.name == PACKAGE else []):
            yield f"{module.path}: holds more or less than a docstring"


def files_have_names_that_say_something(modules: list[Module]) -> Iterator[str]:
    """A drawer without a label fills up."""
    for module in modules:
        if VAGUE_NAMES & set(module.name.split(".")):
            yield f"{module.path}: a name that says nothing"


def nothing_is_long(modules: list[Module]) -> Iterator[str]:
    """Files, functions and parameter lists that fit in a head."""
    for module in modules:
        if (lines := len(module.text.splitlines())) > FILE_LINES:
            yield f"{module.path}: {lines} lines"
        for function in functions(module):
            if (lines := function.end_lineno - function.lineno + 1) > FUNCTION_LINES:
                yield f"{module.path}: {function.name} has {lines} lines"
            if any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list):
                continue  # a kernel takes pointers, sizes and strides one by one
            arguments = function.args
            given = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            if (count := len([name for name in given if name not in {"self", "cls"}])) > PARAMETERS:
                yield f"{module.path}: {function.name} has {count} parameters"


def files_say_what_they_are(modules: list[Module]) -> Iterator[str]:
    """Every file opens with what, why and its neighbours."""
    yield from (f"{module.path}: no docstring" for module in modules if ast.get_docstring(module.tree) is None)


def nothing_ambient(modules: list[Module]) -> Iterator[str]:
    """State is passed, never fetched."""
    for module in modules:
        if any(isinstance(node, ast.Global) for node in ast.walk(module.tree)):
            yield f"{module.path}: global statement"


def files_never_run_code(modules: list[Module]) -> Iterator[str]:
    """What is loaded is data."""
    for module in modules:
        keywords = (k for n in ast.walk(module.tree) if isinstance(n, ast.Call) for k in n.keywords)
        for keyword in keywords:
            if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in UNSAFE_KEYWORDS:
                yield f"{module.path}: {keyword.arg}={keyword.value.value}"


Rule = Callable[[list[Module]], Iterator[str]]

LONG_FILE = '"""D."""\n' * 401
LONG_FUNCTION = '"""D."""\ndef f():\n' + "    x = 1\n" * 60
FAULTS: tuple[tuple[Rule, str, str], ...] = (
    (imports_go_down, "model/planted.py", "from tinyllama_mcore.training import loggers"),
    (imports_go_down, "model/planted.py", "def f():\n    import tinyllama_mcore.sampling.blend"),
    (imports_go_down, "training/planted.py", "from tinyllama_mcore import hf"),
    (imports_go_down, "training/planted.py", "from . import metrics"),
    (imports_go_down, "attic/planted.py", '"""A room without a level."""'),
    (foreign_libraries_have_one_door, "model/planted.py", "def f():\n    from deepspeed.utils import logger"),
    (foreign_libraries_have_one_door, "model/planted.py", "import importlib\nimportlib.import_module('deepspeed')"),
    (foreign_libraries_have_one_door, "engine/planted.py", "from megatron.core import parallel_state"),
    (foreign_libraries_have_one_door, "parallel/planted.py", "import megatron.training.arguments"),
    (foreign_libraries_have_one_door, "training/planted.py", "import os\nx = os.environ['RANK']"),
    (foreign_libraries_have_one_door, "training/planted.py", "from os import getenv"),
    (foreign_libraries_have_one_door, "checkpoint/planted.py", "import pickle"),
    (config_needs_the_standard_library_only, "config/planted.py", "def f():\n    import torch"),
    (no_cycles, "config/schema.py", "def f():\n    from tinyllama_mcore.config.recipes import RECIPES"),
    (init_files_hold_a_docstring_alone, "config/__init__.py", "from tinyllama_mcore.config.schema import RunConfig"),
    (init_files_hold_a_docstring_alone, "__init__.py", "from tinyllama_mcore.config.schema import RunConfig"),
    (files_have_names_that_say_something, "data/utils.py", ""),
    (nothing_is_long, "data/planted.py", LONG_FILE),
    (nothing_is_long, "data/planted.py", LONG_FUNCTION),
    (nothing_is_long, "data/planted.py", "def f(a, b, c, d, *, e, f, g, h): ..."),
    (files_say_what_they_are, "data/planted.py", "x = 1"),
    (nothing_ambient, "data/planted.py", "def f():\n    global x\n    x = 1"),
    (files_never_run_code, "checkpoint/planted.py", "import torch\ntorch.load('f', weights_only=False)"),
)
RULES = tuple(dict.fromkeys(rule for rule, _, _ in FAULTS))


@pytest.fixture(scope="module")
def house() -> list[Module]:
    """The code as it is."""
    return read(REPOSITORY)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_stands(rule: Rule, house: list[Module]) -> None:
    """No rule finds a fault in the code as it is."""
    assert list(rule(house)) == []


@pytest.mark.parametrize(("rule", "path", "code"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_each_rule_sees_its_fault(rule: Rule, path: str, code: str, house: list[Module], tmp_path: Path) -> None:
    """A fault that is planted in a copy of a file, or in a new one beside the others, is named with its file."""
    original, copy = (root / PACKAGE / path for root in (REPOSITORY, tmp_path))
    copy.parent.mkdir(parents=True)
    copy.write_text(f"{original.read_text() if original.exists() else ''}\n{code}\n")
    (planted,) = read(tmp_path)
    others = [module for module in house if module.path != planted.path]
    (found,) = set(rule([*others, planted])) - set(rule(house))
    assert planted.path in found or planted.name in found


def test_ruff_knows_the_same_doors() -> None:
    """The table above and the one in pyproject.toml name the same libraries."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    banned = settings["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(banned) == set(DOORS)
