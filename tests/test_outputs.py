"""No command overwrites what another one made, and none finds out after its work that it cannot write.

One table of every flag that names an output, over every program of tools/ and examples/. tests/training/test_outputs.py
has whose a run's metrics and events are.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed import ranks

REPOSITORY = ranks.CHECKOUT
TRAIN = "examples/pretrain_tinyllama.py --deepspeed_config ds_configs/zero1.json --data-path {data}"


@dataclass(frozen=True, kw_only=True)
class Output:
    """A flag that names an output, and how its program is called; {out} is what it names."""

    command: str
    occupied: tuple[str, ...]
    """Files, by their names after {out}, each of which is another command's result. (): nothing there is taken."""
    message: str
    """Of the refusal."""


OUTPUTS = {
    "preprocess_data.py --output-prefix": Output(
        command="tools/preprocess_data.py --input {raw} --tokenizer-model {tokenizer} --output-prefix {out}",
        occupied=tuple(f"_text_document{end}" for end in (".bin", ".idx", ".json", ".quarantine.jsonl")),
        message="exists; name another prefix, or give --overwrite",
    ),
    "merge_datasets.py --output-prefix": Output(
        command="tools/merge_datasets.py --input {data} {more} --output-prefix {out}",
        occupied=(".bin", ".idx", ".json"),
        message="exists; name another prefix, or give --overwrite",
    ),
    "import_tokens.py --output-prefix": Output(
        command="tools/import_tokens.py --input {tokens} --tokenizer-model {tokenizer} --output-prefix {out}",
        occupied=(".bin", ".idx", ".json"),
        message="exists; name another prefix, or give --overwrite",
    ),
    "plan_layout.py --json": Output(
        command="tools/plan_layout.py --gpu h100 --world-size 1 --json {out}.json",
        occupied=(".json",),
        message="exists: name a new file, or give --overwrite",
    ),
    "plan_layout.py --measure": Output(
        command="tools/plan_layout.py --gpu h100 --world-size 1 --measure {out}.json",
        occupied=(".json",),
        message="exists: name a new file, or give --overwrite",
    ),
    "report.py --output": Output(
        command="tools/report.py {raw} --output {out}.html",
        occupied=(".html",),
        message="exists: name a new file, or give --overwrite",
    ),
    "report.py --png": Output(
        command="tools/report.py {raw} --png {out}.png",
        occupied=(".png",),
        message="exists: name a new file, or give --overwrite",
    ),
    "evaluate.py --output": Output(
        command="tools/evaluate.py --checkpoints {data} --output {out}.jsonl",
        occupied=(".jsonl",),
        message="holds something else than scores, in line 1: name a new file",
    ),
    "evaluate.py --png": Output(
        command="tools/evaluate.py --checkpoints {data} --png {out}.png",
        occupied=(".png",),
        message="exists: name a new file, or give --overwrite",
    ),
    "merge_to_hf.py --output": Output(
        command="tools/merge_to_hf.py --load {data} --output {out}",
        occupied=("/config.json",),
        message="exists and is not empty: name a new directory, or remove it first",
    ),
    "convert_from_hf.py --output": Output(
        command="tools/convert_from_hf.py --input {data} --output {out}",
        occupied=("/latest_checkpointed_iteration.txt",),
        message="exists and is not empty: name a new directory, or remove it first",
    ),
    "benchmark_data.py --directory": Output(
        command="tools/benchmark_data.py corpus --megabytes 0 --directory {out}",
        occupied=("/text/0.jsonl.zst", "/code/0.parquet"),
        message="exists; name a new directory, or give --overwrite",
    ),
    "demo.py --output": Output(
        command="examples/demo.py --output {out}",
        occupied=("/.made-by-demo", "/thesis.tex"),
        message="name a new directory",
    ),
    "pretrain_tinyllama.py --metrics-file": Output(
        command=f"{TRAIN} --metrics-file {{out}}.jsonl",
        occupied=(".jsonl",),
        message="that another run wrote",
    ),
    "pretrain_tinyllama.py --tensorboard-dir": Output(
        command=f"{TRAIN} --tensorboard-dir {{out}}",
        occupied=("/events.out.tfevents.1.host",),
        message="that another run wrote",
    ),
    "pretrain_tinyllama.py --profile-dir": Output(
        command=f"{TRAIN} --profile 1:2 --profile-dir {{out}}",
        occupied=("/anything",),
        message="that another run wrote",
    ),
    "pretrain_tinyllama.py --save": Output(
        command=f"{TRAIN} --save {{out}}",
        occupied=(),  # tests/distributed/test_changes.py: checkpoints there are gone on from, or set aside
        message="",
    ),
    "pretrain_tinyllama.py --data-cache-path": Output(
        command=f"{TRAIN} --data-cache-path {{out}}",
        occupied=(),  # indices are named by their content
        message="",
    ),
}
OF_NO_USER = {
    "benchmark.py --output": "tests/benchmarking/test_benchmark.py",
    "benchmark_loader.py --directory": "makes its blend in a directory 1e9 of it, where it is not there",
    "inspect_data.py --data-cache-path": "indices are named by their content",
    "preflight.py --save": "leaves nothing there: tests/preflight/test_preflight.py",
}
"""Flags that name a place and need no row -> why."""
PLACES = r"--(output|output-prefix|directory|json|png|measure|save|metrics-file|[\w-]*-dir|[\w-]*cache-path)"
"""How a flag is called that names a place to write."""


@pytest.fixture
def places(corpus: list[str], corpus_tokenizer: Path, tmp_path: Path) -> dict[str, str]:
    """What the commands read."""
    raw = tmp_path / "raw.jsonl"
    raw.write_text(json.dumps({"text": "a text"}) + "\n")
    tokens = tmp_path / "tokens.ds"
    tokens.write_bytes(bytes([9, 0, 2, 0]))
    Path(f"{tokens}.index").write_bytes((2).to_bytes(8, "little"))
    files = {"raw": str(raw), "tokens": str(tokens), "tokenizer": str(corpus_tokenizer)}
    return {"data": corpus[1], "more": corpus[3], **files}


def refusal(output: Output, place: Path, places: dict[str, str], logs: Path) -> str:
    """Run a command that has to be refused; what it says."""
    code, said = ranks.program(output.command.format(**places, out=place).split(), logs=logs)
    assert code == 2, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("output", "file"), [(o, f) for o in OUTPUTS.values() for f in o.occupied],
    ids=[f"{name} {file}" for name, o in OUTPUTS.items() for file in o.occupied],
)  # fmt: skip
def test_what_another_command_made_stays(output: Output, file: str, places: dict[str, str], tmp_path: Path) -> None:
    """Exit code 2, the flag and the way out are named, not a byte changes."""
    held = Path(f"{tmp_path / 'place' / 'out'}{file}")
    held.parent.mkdir(parents=True)
    held.write_text('{"iteration": 1}\n')
    told = refusal(output, tmp_path / "place" / "out", places, tmp_path / "logs")
    assert output.message in told
    assert [path for path in (tmp_path / "place").rglob("*") if path.is_file()] == [held]
    assert held.read_text() == '{"iteration": 1}\n'


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_a_place_that_cannot_be_written_is_found_first(output: Output, places: dict[str, str], tmp_path: Path) -> None:
    """A place that nobody can write to, root neither: it is tried."""
    told = refusal(output, Path("/proc/nope/out"), places, tmp_path / "logs")
    assert re.search(r"/proc/nope\S* cannot be written|no index can be written to /proc/nope", told), told


def test_every_flag_that_names_a_place_is_tried(tmp_path: Path) -> None:
    """By the `--help` of every program."""
    named = set()
    for program in (*sorted((REPOSITORY / "tools").glob("*.py")), *sorted((REPOSITORY / "examples").glob("*.py"))):
        code, shown = ranks.program([str(program), "--help"], logs=tmp_path / program.stem)
        assert code == 0, shown
        for flag in set(re.findall(r"^  (--[\w-]+)", shown, flags=re.MULTILINE)):
            if re.fullmatch(PLACES, flag) and not (program.name == "inspect_data.py" and flag == "--json"):
                named.add(f"{program.name} {flag}")
    assert named == OUTPUTS.keys() | OF_NO_USER.keys()
