"""The recipes: the paper's numbers, and a file of one's own that is read to the letter."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.config.conftest import REPOSITORY
from tinyllama_mcore.checkpoint.manifest import Manifest, Provenance, RunState, to_text
from tinyllama_mcore.config import recipes, records
from tinyllama_mcore.config.compose import compose
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import MANIFEST
from tinyllama_mcore.config.schema import RunConfig

DOCUMENTATION = REPOSITORY / "docs/reference/recipe.md"
LARGE = recipes.RECIPES["tinyllama-1.1b"]


def test_the_papers_numbers() -> None:
    """Section 2.4's batch and length; heads 64 wide."""
    assert LARGE.batch.tokens_per_iteration == 2_097_152  # "2M tokens"
    assert LARGE.batch.train_tokens == 3_000_001_101_824  # 1,430,512 iterations
    assert LARGE.model.head_dim == 64
    assert LARGE.optimizer.min_lr < LARGE.optimizer.lr  # known bug 1: they were equal until 503 B tokens


def test_the_number_of_parameters() -> None:
    """1,100,048,384, as the released weights hold."""
    from tinyllama_mcore.config.parameters import count_parameters

    assert count_parameters(LARGE.model) == 1_100_048_384


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_every_recipe_is_legal_and_survives_a_file(
    make_run: Callable[..., RunConfig], write_json: Callable[..., str], name: str
) -> None:
    """Each passes the rules on one rank, and reads back equal from JSON."""
    make_run("--recipe", name)
    path = write_json(records.to_plain(recipes.RECIPES[name]), "recipe.json")
    assert recipes.load(path) == recipes.RECIPES[name]
    assert make_run("--recipe", path).recipe == path


def change(**blocks: dict[str, Any] | list[Any] | str) -> dict[str, Any]:
    """tinyllama-1.1b as plain JSON, with keys put in, or taken out where the value is None."""
    plain = json.loads(json.dumps(records.to_plain(LARGE)))
    for block, changes in blocks.items():
        if not isinstance(changes, dict):
            plain[block] = changes
            continue
        for key, value in changes.items():
            plain[block].pop(key, None)
            if value is not None:
                plain[block][key] = value
    return plain


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (change(model={"hiden_size": 1}), "model: unknown key 'hiden_size'; did you mean hidden_size?"),
        (change(model={"num_layers": None}), "model: the key 'num_layers' is missing"),
        (change(model={"num_layers": 22.0}), "model: num_layers must be a whole number, got 22.0"),
        (change(model={"num_layers": True}), "num_layers must be a whole number, got True"),
        (change(optimizer={"lr": "4e-4"}), "optimizer: lr must be a number, got '4e-4'"),
        (change(optimizer={"weight_decay_on": 1}), "weight_decay_on must be a string, got 1"),
        (change(batch=[]), "batch: expected an object {...}, got []"),
        (change(precison="bf16"), "unknown key 'precison'; did you mean precision?"),
    ],
)
def test_a_recipe_file_is_read_to_the_letter(
    write_json: Callable[..., str], plain: dict[str, Any], expected: str
) -> None:
    """No key unknown, missing or of another type."""
    path = write_json(plain, "recipe.json")
    with pytest.raises(ConfigError) as told:
        recipes.load(path)
    assert expected in str(told.value)
    assert str(told.value).startswith(path)


def test_a_precision_that_does_not_exist(make_run: Callable[..., RunConfig], write_json: Callable[..., str]) -> None:
    """It is a switch with two values."""
    with pytest.raises(ConfigError, match=r"precision is 'fp8' in recipe .*; it must be one of fp32, bf16"):
        make_run("--recipe", write_json(change(precision="fp8"), "recipe.json"))


def test_an_unknown_name() -> None:
    """The one that it resembles is named."""
    with pytest.raises(ConfigError, match=r"--recipe tinylama-1.1b: no such recipe; did you mean tinyllama-1.1b\?"):
        recipes.load("tinylama-1.1b")
    with pytest.raises(ConfigError, match=r"known: llama-3\.2-1b, .*, tinyllama-debug"):
        recipes.load("gpt")
    with pytest.raises(ConfigError, match=r"nowhere\.json: no such file"):
        recipes.load("nowhere.json")


def test_what_a_recipe_can_say_stands_in_three_blocks() -> None:
    """docs/reference/recipe.md tells these."""
    assert [field.name for field in fields(recipes.Recipe)] == ["model", "optimizer", "batch", "precision"]


def test_the_documentation_tells_every_number() -> None:
    """docs/reference/recipe.md has a row for each field of the three blocks, with its value."""
    rows = re.findall(r"^\| (\w*) \| `(\w+)` \| (\S+) \| .+ \|$", DOCUMENTATION.read_text(), flags=re.MULTILINE)
    plain = records.to_plain(LARGE)
    told = {(block, name): value for block, name, value in rows}
    expected = {
        (block, name): value for block in ("model", "optimizer", "batch") for name, value in plain[block].items()
    }
    spelled = {key: "null" if value is None else str(value) for key, value in expected.items()}
    assert told == spelled | {("run", "precision"): "bf16"}


def test_the_example_in_the_documentation_runs(
    make_run: Callable[..., RunConfig], write_json: Callable[..., str]
) -> None:
    """The file that it shows is a legal recipe."""
    example = DOCUMENTATION.read_text().partition("```json\n")[2].partition("```")[0]
    assert make_run("--recipe", write_json(example, "recipe.json")).model.num_layers == 12


def test_a_checkpoint_that_is_kept_beside_is_not_taken(tmp_path: Path) -> None:
    """A copy under a longer name has the recipe of another day."""
    runs = {"iter_0000004": "tinyllama-debug", "iter_0000001.keep": "tinyllama-120m", "iter_0000003": "tinyllama-1.1b"}
    for folder, recipe in runs.items():
        run = records.to_plain(compose(recipe, str(REPOSITORY / "ds_configs/zero1.json")))
        said = Manifest(state=RunState(), run=run, provenance=Provenance(versions={}), parameters=1, kinds=())
        (tmp_path / folder).mkdir()
        (tmp_path / folder / MANIFEST).write_text(to_text(said))
    for iteration, recipe in ((None, "tinyllama-debug"), (4, "tinyllama-debug"), (3, "tinyllama-1.1b")):
        found = recipes.of_checkpoint(str(tmp_path), iteration)
        assert found is not None and found[0] == recipe
    assert recipes.of_checkpoint(str(tmp_path), 1) is None


@pytest.mark.parametrize(
    ("block", "key"), [("batch", "micro_batch_size"), ("batch", "seq_length"), ("model", "num_layers")]
)
@pytest.mark.parametrize("flags", [(), ("--train-tokens", "20480")], ids=str)
def test_a_size_of_a_recipe_file_is_at_least_1(
    block: str, key: str, flags: tuple[str, ...], make_run: Callable[..., RunConfig], write_json: Callable[..., str]
) -> None:
    """Before anything is worked out from it, on a command line and in Python alike; the file is named."""
    recipe = records.to_plain(recipes.RECIPES["tinyllama-debug"])
    source = write_json(recipe | {block: recipe[block] | {key: 0}}, "recipe.json")
    told = rf"{key} is 0 in recipe .*recipe\.json; it must be at least 1"
    with pytest.raises(ConfigError, match=told):
        make_run("--recipe", source, *flags)
    with pytest.raises(ConfigError, match=told):
        compose(source, str(REPOSITORY / "ds_configs/zero1.json"))
