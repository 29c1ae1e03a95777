"""Every bit that a redraw must leave as it was: losses, norms, checkpoints, datasets and exports of one run a mode.

    python -m tests.distributed.fingerprints before.json

writes the file on the commit before, and on the commit after compares with it: exit code 1 where anything differs. Both
on one machine and with one set of packages; a minute on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.distributed import ranks
from tests.distributed.conftest import flags, kept
from tests.distributed.layouts import Mode
from tinyllama_mcore.checkpoint import layout

RUNS = {
    **{
        name: (Mode(sharding=name), ())
        for name in ("zero0", "zero1", "zero2", "zero3", "zero3-offload", "fsdp", "fsdp-grad-op", "fsdp-hybrid")
    },
    **{f"{name}-bf16": (Mode(sharding=name, precision="bf16"), ()) for name in ("zero1", "zero2", "zero3", "fsdp")},
    "tensor": (Mode(sharding="zero1", tp=2, dp=1), ()),
    "tensor-sequence": (Mode(sharding="fsdp", tp=2, sp=True, dp=1), ()),
    "pipeline": (Mode(sharding="zero1", pp=2, dp=1), ()),
    "pipeline-interleaved": (Mode(sharding="fsdp", pp=2, vpp=2, dp=1), ()),
    "context": (Mode(sharding="zero1", cp=2, dp=1), ()),
    "recompute": (Mode(sharding="zero1"), ("--recompute-granularity", "full")),
    "local": (Mode(sharding="zero1"), ("--transformer-impl", "local")),
    "documents": (Mode(sharding="zero1"), ("--inter-document-masking",)),
    "validation": (Mode(sharding="zero1"), ("--split", "90,10,0", "--eval-interval", "2", "--eval-iters", "2")),
}
"""Name -> layout, and the flags beside it."""
FIGURES = ("iteration", "lm_loss", "grad_norm", "lr", "consumed_samples", "consumed_by_dataset", "skipped")
"""Of each line of the metrics file; the rest is measured."""
EXPORTED = "zero1"


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tool(name: str, *arguments: object) -> None:
    """Run a program of tools/."""
    subprocess.run([sys.executable, str(ranks.CHECKOUT / "tools" / f"{name}.py"), *map(str, arguments)], check=True)


def dataset(home: Path) -> tuple[Path, list[str], dict[str, str]]:
    """Tokenizer, `--data-path`, and the checksums of two datasets made by the project's own tool."""
    import sentencepiece

    from tinyllama_mcore.preprocessing.sample_corpus import LLAMA_TOKENIZER

    draw = random.Random(0)
    words = ["".join(draw.choices("aeiourstlnmdk", k=draw.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(draw.choices(words, k=draw.randint(5, 300))) for _ in range(400)]
    model = home / "tokenizer.model"
    with model.open("wb") as written:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=written, vocab_size=509, minloglevel=2, **LLAMA_TOKENIZER
        )
    for name, part in (("one", texts[:250]), ("two", texts[250:])):
        (home / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
        where = ("--input", home / f"{name}.jsonl", "--output-prefix", home / name)
        tool("preprocess_data", *where, "--tokenizer-model", model, "--append-eod", "--workers", 2)
    made = sorted(path for path in home.iterdir() if path.suffix in (".bin", ".idx"))
    prefixes = [str(path.with_suffix("")) for path in made if path.suffix == ".bin"]
    return model, ["0.7", prefixes[0], "0.3", prefixes[1]], {path.name: sha256(path) for path in made}


def trained(home: Path, mode: Mode, more: tuple[str, ...], corpus: list[str]) -> dict[str, object]:
    """Six iterations, saved at the third and the last: every figure that is not measured, and every file."""
    argv = [*flags(mode, home, corpus), *kept(home), "--exit-interval", "6", "--save-interval", "3", *more]
    ranks.pretrain(argv, world_size=mode.world_size, logs=home / "logs")
    records = ranks.metrics(home / "metrics.jsonl")
    found: dict[str, object] = {
        "metrics": [{name: record[name] for name in FIGURES if name in record} for record in records]
    }
    for iteration in layout.iterations(home / "checkpoints"):
        for file in sorted(layout.folder(home / "checkpoints", iteration).iterdir()):
            if file.suffix == ".safetensors":
                found[f"{iteration}/{file.name}"] = sha256(file)
    return found


def fingerprints(home: Path) -> dict[str, object]:
    """Of everything."""
    model, corpus, found = dataset(home)
    made: dict[str, object] = {"datasets": found}
    for name, (mode, more) in RUNS.items():
        print(f"{name} ...", flush=True)
        made[name] = trained(home / name, mode, more, corpus)
    saved = ("--load", home / EXPORTED / "checkpoints", "--output", home / "hf")
    tool("merge_to_hf", *saved, "--tokenizer-model", model)
    exported = (path for path in sorted((home / "hf").iterdir()) if path.suffix != ".md")  # the card names a path
    made["export"] = {path.name: sha256(path) for path in exported}
    return json.loads(json.dumps(made).replace(str(home), "<home>"))


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="of fingerprints: written where it is not there, compared where it is")
    file = parser.parse_args().file
    with tempfile.TemporaryDirectory() as home:
        now = fingerprints(Path(home))
    if not file.exists():
        file.write_text(json.dumps(now, indent=1) + "\n")
        print(f"{len(now)} fingerprints written to {file}")
        return 0
    before = json.loads(file.read_text())
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    for name in different:
        print(f"{name}: not what it was")
        for label, found in (("before", before), ("now   ", now)):
            print(f"  {label} {json.dumps(found.get(name))[:600]}")
    print(f"{len(now) - len(different)} of {len(now)} are equal to the bit")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
