"""Ten iterations, stop, ten more: bit for bit the same as twenty, in every mode. And refusals at the same door."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.distributed import ranks
from tests.distributed.conftest import Job, kept, write_json
from tests.distributed.layouts import BF16_MODES, MODES, STATE_MODES, Mode
from tests.distributed.recipe import BATCH, RECIPE, SAVED
from tinyllama_mcore.checkpoint import layout, probe
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.commands import inspect_data
from tinyllama_mcore.config.paths import MANIFEST
from tinyllama_mcore.data import indexed, receipt
from tinyllama_mcore.data.indexed import HEADER

ZERO1 = Mode(sharding="zero1")
LAST = BATCH["train_iters"]
SUITE_PAIRS = list(zip(STATE_MODES, [*STATE_MODES[1:], STATE_MODES[0]], strict=True))
"""Each of STATE_MODES writes once and reads once."""
MATRIX = [
    *((writer, reader) for writer in STATE_MODES for reader in STATE_MODES if writer != reader),
    *zip(MODES, [*MODES[1:], MODES[0]], strict=True),
]
"""Every one of STATE_MODES read by every other, and every one of MODES written and read: what `--all-layouts` tries."""


def resumed(job: Job, mode: Mode, home: Path) -> Job:
    """The second half of `job`, gone on from a copy of its checkpoint of iteration `SAVED`."""
    copy = Job(home=home, argv=job.argv)
    shutil.copytree(layout.folder(job.save, SAVED), layout.folder(copy.save, SAVED))
    ranks.pretrain([*job.argv, *kept(home)], world_size=mode.world_size, logs=home / "logs")
    return copy


@pytest.mark.parametrize("mode", [*STATE_MODES, *BF16_MODES[:4]], ids=str)
def test_resume_is_bit_for_bit(mode: Mode, job_of: Callable[[Mode], Job], tmp_path: Path) -> None:
    """Losses and norms with all their digits, and every bit of the final weights and moments."""
    whole = job_of(mode)
    half = resumed(whole, mode, tmp_path)
    for name in ("iteration", "lm_loss", "grad_norm", "lr", "consumed_samples"):
        assert [r[name] for r in half.metrics] == [r[name] for r in whole.metrics[SAVED:]], name
    one, other = (CheckpointReader(layout.find(job.save)) for job in (whole, half))
    assert one.manifest.state == other.manifest.state
    assert set(one.keys()) == set(other.keys())
    for key in sorted(one.keys()):
        assert torch.equal(one.tensor(key), other.tensor(key)), key


def _save_in_small_files(argv: list[str]) -> int:
    from tinyllama_mcore.checkpoint import store
    from tinyllama_mcore.pretrain import main

    store.FILE_BYTES = 20_000
    return main(argv)


def test_a_rank_writes_several_files(job_of: Callable[[Mode], Job], tmp_path: Path) -> None:
    """Of bounded size, so that little is held in memory twice; bit for bit what one file holds."""
    mode = Mode(sharding="zero2", tp=2, sp=True, pp=2, dp=1)
    whole = job_of(mode)
    argv = [*whole.argv, *kept(tmp_path), "--exit-interval", str(SAVED)]
    assert ranks.run(mode.world_size, _save_in_small_files, argv, logs=tmp_path / "logs") == [0] * mode.world_size
    one, other = (layout.folder(save, SAVED) for save in (whole.save, tmp_path / "checkpoints"))
    files = list(other.glob("*.safetensors"))
    assert len(files) > 4 * mode.world_size
    assert max(file.stat().st_size for file in files) < min(file.stat().st_size for file in one.glob("*.safetensors"))
    expected, found = CheckpointReader(one), CheckpointReader(other)
    assert set(found.keys()) == set(expected.keys())
    for key in sorted(expected.keys()):
        assert torch.equal(found.tensor(key), expected.tensor(key)), key


def test_files_do_not_tell_the_layout(shown_of: Callable[[Mode], tuple[Job, int]]) -> None:
    """Every mode's checkpoint holds the same keys and whole shapes: the logical parameters, three kinds of each."""
    seen = set()
    for mode in MODES:
        folder = layout.find(shown_of(mode)[0].save)
        keys = set()
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="pt") as stored:
                keys |= set(stored.keys())
        seen.add(frozenset(keys))
    assert len(seen) == 1
    assert len(seen.pop()) == 3 * (3 + 7 * RECIPE["model"]["num_layers"]) + len({probe.TOKENS, probe.LOGITS})


@pytest.mark.parametrize(
    ("writer", "reader"),
    [pytest.param(*pair, marks=[pytest.mark.layouts] * (pair not in SUITE_PAIRS)) for pair in dict.fromkeys(MATRIX)],
    ids=str,
)
def test_another_layout_goes_on(writer: Mode, reader: Mode, job_of: Callable[[Mode], Job], tmp_path: Path) -> None:
    """Saved under one layout, gone on under another: the curve is the other's own within fp32 rounding."""
    other = job_of(reader)
    copy = Job(home=tmp_path, argv=other.argv)
    shutil.copytree(layout.folder(job_of(writer).save, SAVED), layout.folder(copy.save, SAVED))
    ranks.pretrain([*other.argv, *kept(tmp_path)], world_size=reader.world_size, logs=tmp_path / "logs")
    for record, expected in zip(copy.metrics, other.metrics[SAVED:], strict=True):
        assert abs(record["lm_loss"] - expected["lm_loss"]) <= 2e-6
        assert abs(record["grad_norm"] - expected["grad_norm"]) <= 1e-5 * expected["grad_norm"]


def refusal(argv: list[str], logs: Path) -> str:
    """Run one rank that must refuse; its message."""
    assert ranks.run(1, ranks._pretrain, argv, logs=logs) == [2], (logs / "rank0.log").read_text()[-2000:]
    lines = (logs / "rank0.log").read_text().splitlines()
    messages = [line for line in lines if line.startswith("error: ")]
    assert len(messages) == 1
    assert "Traceback" not in "\n".join(lines)
    return messages[0]


@pytest.fixture
def copy_of(job_of: Callable[[Mode], Job], tmp_path: Path) -> Job:
    """A run's checkpoints to damage."""
    job = job_of(ZERO1)
    shutil.copytree(job.save, tmp_path / "checkpoints")
    return Job(home=tmp_path, argv=job.argv)


Damage = Callable[[Path, Path], None]
"""(newest checkpoint, the one before it) -> the newest is damaged."""


def shard_of(folder: Path) -> Path:
    """One of a checkpoint's tensor files."""
    return sorted(folder.glob("*.safetensors"))[-1]


def flip_a_bit(newest: Path, _: Path) -> None:
    """One bit in the middle of a tensor file."""
    content = bytearray(shard_of(newest).read_bytes())
    content[len(content) // 2] ^= 4
    shard_of(newest).write_bytes(content)


def truncate(newest: Path, _: Path) -> None:
    """A tensor file without its last byte."""
    shard_of(newest).write_bytes(shard_of(newest).read_bytes()[:-1])


def remove(newest: Path, _: Path) -> None:
    """A tensor file gone."""
    shard_of(newest).unlink()


def exchange(newest: Path, before: Path) -> None:
    """A tensor file of the iteration before, of the same size and sound by itself."""
    shutil.copy(shard_of(before), shard_of(newest))


def cut_the_manifest(newest: Path, _: Path) -> None:
    """A manifest that ends in its middle."""
    path = newest / MANIFEST
    path.write_bytes(path.read_bytes()[:200])


def exchange_the_manifest(newest: Path, before: Path) -> None:
    """The manifest of the iteration before."""
    shutil.copy(before / MANIFEST, newest / MANIFEST)


DAMAGES: tuple[Damage, ...] = (flip_a_bit, truncate, remove, exchange, cut_the_manifest, exchange_the_manifest)


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_one_before_a_damaged_checkpoint_is_taken(
    damage: Damage, copy_of: Job, job_of: Callable[[Mode], Job], tmp_path: Path
) -> None:
    """Two ranks go on from the one before bit for bit, the damage is named, the damaged one is set aside."""
    newest, before = (layout.folder(copy_of.save, iteration) for iteration in (LAST, SAVED))
    damage(newest, before)
    where = (*kept(copy_of.home), "--train-iters", str(LAST))
    output = ranks.pretrain([*copy_of.argv, *where, "--keep-latest", "1"], world_size=2, logs=tmp_path / "logs")
    (warning,) = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert f"checkpoint {newest} is damaged: {newest}/" in warning
    whole = job_of(ZERO1).metrics
    assert [r["lm_loss"] for r in copy_of.metrics] == [r["lm_loss"] for r in whole[SAVED:]]
    assert sorted(p.name for p in copy_of.save.glob("*iter_*")) == [f"abandoned-{newest.name}", newest.name]


@pytest.mark.parametrize("damage", [flip_a_bit, truncate], ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_that_was_asked_for_is_refused(damage: Damage, copy_of: Job, tmp_path: Path) -> None:
    """--iteration takes no other, and names the file."""
    newest, before = (layout.folder(copy_of.save, iteration) for iteration in (LAST, SAVED))
    damage(newest, before)
    message = refusal([*copy_of.argv, "--load", str(copy_of.save), "--iteration", str(LAST)], tmp_path / "logs")
    assert shard_of(newest).name in message


def test_a_run_goes_back_where_it_is_told(copy_of: Job, tmp_path: Path) -> None:
    """--iteration with a newer, sound one beside it, and a refusal of one that is not there."""
    message = refusal([*copy_of.argv, "--load", str(copy_of.save), "--iteration", "12"], tmp_path / "logs")
    assert f"no finished checkpoint of iteration 12; finished ones: {SAVED}, {LAST}" in message
    argv = [*copy_of.argv, "--load", str(copy_of.save), "--iteration", str(SAVED), "--exit-interval", "11"]
    assert f"iteration {SAVED}" in ranks.pretrain(argv, world_size=2, logs=tmp_path / "logs")
    assert layout.iterations(copy_of.save) == [SAVED, LAST]  # nothing is saved there: nothing is set aside


def test_a_job_that_is_queued_again_does_not_go_back_again(copy_of: Job, tmp_path: Path) -> None:
    """The same command, with --iteration: from its own newest whole checkpoint, also where that iteration is pruned."""
    argv = [*copy_of.argv, "--save", str(copy_of.save), "--iteration", str(SAVED), "--save-interval", "1"]
    first = ranks.pretrain([*argv, "--exit-interval", str(SAVED + 2)], world_size=2, logs=tmp_path / "logs")
    assert f"iter_{SAVED:07d}, iteration {SAVED}" in first and "went back there" not in first
    own = [SAVED + 1, SAVED + 2]
    assert layout.iterations(copy_of.save) == [SAVED, *own]  # the one of LAST is set aside
    truncate(layout.folder(copy_of.save, own[1]), copy_of.save)
    again = [*argv, "--exit-interval", str(SAVED + 2), "--keep-latest", "1"]
    output = ranks.pretrain(again, world_size=2, logs=tmp_path / "logs")
    assert f"iter_{own[0]:07d}, iteration {own[0]}" in output
    assert f"--iteration {SAVED}: a run with this flag went back there and saved iteration {own[0]}" in output
    assert layout.iterations(copy_of.save) == [own[1]]
    last = ranks.pretrain([*argv, "--exit-interval", str(SAVED + 3)], world_size=2, logs=tmp_path / "logs")
    assert f"iter_{own[1]:07d}, iteration {own[1]}" in last
    message = refusal([*argv[:-3], str(SAVED + 1), "--save-interval", "1"], tmp_path / "logs")
    assert f"no finished checkpoint of iteration {SAVED + 1}" in message


@pytest.mark.faults
def test_where_all_are_damaged_the_run_is_refused(copy_of: Job, tmp_path: Path) -> None:
    """Each is named; two ranks leave alike."""
    for iteration in (SAVED, LAST):
        flip_a_bit(layout.folder(copy_of.save, iteration), copy_of.save)
    codes = ranks.run(2, ranks._pretrain, [*copy_of.argv, "--load", str(copy_of.save)], logs=tmp_path / "logs")
    assert codes == [2, 2]
    output = (tmp_path / "logs" / "rank0.log").read_text()
    assert f"iter_{SAVED:07d} is damaged" in output
    assert f"iter_{LAST:07d} is damaged" in output


def test_a_half_written_checkpoint_is_not_a_start_from_zero(copy_of: Job, tmp_path: Path) -> None:
    """--load of a directory whose only checkpoint has no manifest."""
    shutil.rmtree(layout.folder(copy_of.save, LAST))
    (layout.folder(copy_of.save, SAVED) / MANIFEST).unlink()
    message = refusal([*copy_of.argv, "--load", str(copy_of.save)], tmp_path / "logs")
    assert f"iter_{SAVED:07d}" in message
    assert "has no manifest.json" in message


def test_a_missing_checkpoint_is_not_a_start_from_zero(copy_of: Job, tmp_path: Path) -> None:
    """--load of a directory that is not there."""
    assert "nowhere" in refusal([*copy_of.argv, "--load", str(tmp_path / "nowhere")], tmp_path / "logs")


def test_another_architecture_is_refused(copy_of: Job, tmp_path: Path) -> None:
    """A recipe with another width, naming what differs."""
    recipe = json.loads(json.dumps(RECIPE))
    recipe["model"]["ffn_hidden_size"] = 192
    other = write_json(tmp_path / "other.json", recipe)
    argv = [*copy_of.argv, "--load", str(copy_of.save)]
    argv[argv.index("--recipe") + 1] = other
    message = refusal(argv, tmp_path / "logs")
    assert "ffn_hidden_size is 176 in the checkpoint and 192 in this command" in message


@pytest.mark.faults
@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_data_that_changed_is_named(ending: str, copy_of: Job, tmp_path: Path) -> None:
    """Between save and resume a dataset became another one, with as many tokens."""
    argv = list(copy_of.argv)
    at = argv.index("--data-path") + 2
    moved = tmp_path / Path(argv[at]).name
    for kind in (".bin", ".idx", ".json"):
        shutil.copy(argv[at] + kind, str(moved) + kind)
    argv[at] = str(moved)
    argv += ["--train-iters", str(LAST + 2), "--override-schedule"]
    elsewhere = ["--load", str(copy_of.save), "--save", str(tmp_path / "elsewhere"), "--exit-interval", str(LAST + 1)]
    ranks.pretrain([*argv, *elsewhere], world_size=1, logs=tmp_path / "logs")  # but the same
    changed = Path(str(moved) + ending)
    content = bytearray(changed.read_bytes())
    if ending == ".bin":
        content[:2] = content[2:4]  # another first token
    else:
        content[HEADER.size], content[HEADER.size + 4] = content[HEADER.size] - 1, content[HEADER.size + 4] + 1
        moved.with_suffix(".json").unlink()  # a receipt that does not fit is refused before
    changed.write_bytes(content)
    message = refusal([*argv, "--load", str(tmp_path / "elsewhere")], tmp_path / "logs")
    assert str(changed) in message


def test_another_order_of_samples_is_refused(copy_of: Job, tmp_path: Path) -> None:
    """Another seed would go on with other samples."""
    message = refusal([*copy_of.argv, "--load", str(copy_of.save), "--seed", "7"], tmp_path / "logs")
    assert "seed is 1234 in the checkpoint and 7 in this command" in message


@pytest.mark.slow
def test_a_blend_changes_on_the_way(
    job_of: Callable[[Mode], Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ranks go on with other weights and another dataset, once told to; from a checkpoint after it, bit for bit."""
    whole, changed, again = job_of(ZERO1), tmp_path / "changed", tmp_path / "again"
    argv = list(whole.argv)
    at = argv.index("--data-path") + 1
    _, text, _, code = argv[at : at + 4]
    with indexed.PairWriter(tmp_path / "new", indexed.read(text).dtype) as pair:
        pair.add(np.arange(3, 503), np.array([250, 250]))
    argv[at : at + 4] = ["0.5", str(tmp_path / "new"), "0.5", code]
    for home, source, iteration in ((changed, whole.save, SAVED), (again, changed / "checkpoints", 12)):
        shutil.copytree(layout.folder(source, iteration), layout.folder(home / "checkpoints", iteration))
        flags = [*argv, *kept(home), "--save-interval", "3"]
        if home == changed:
            assert "--allow-data-change" in refusal(flags, tmp_path / "refused")
            flags.append("--allow-data-change")
        told = ranks.pretrain(flags, world_size=2, logs=home / "logs")
        assert "changed at sample 80: " in told and f"{text} is dropped after 56 samples" in told
    first, second = (Job(home=home, argv=()).metrics for home in (changed, again))
    for name in ("iteration", "lm_loss", "grad_norm", "consumed_samples", "consumed_tokens_by_dataset"):
        assert [record[name] for record in second] == [record[name] for record in first[2:]], name
    slip = receipt.read(code)
    assert slip is not None
    shown = [*argv[at - 1 : at + 4], "--tokenizer-model", slip.tokenizer_model, "--load", str(again / "checkpoints")]
    assert inspect_data.main([*shown, "--seq-length", "32", "--sample", "79"]) == 2
    assert (
        "--sample 79 was drawn from an earlier blend; samples of the present one begin at 80" in capsys.readouterr().err
    )
    assert inspect_data.main([*shown, "--seq-length", "32", "--sample", "81", "--json"]) == 0
    sample = json.loads(capsys.readouterr().out)
    assert (sample["prefix"], sample["epoch"], sample["position"]) == (code, 0, 24)
    assert first[-1]["consumed_tokens_by_dataset"] == {
        text: 56 * 32,
        code: (24 + 16) * 32,
        str(tmp_path / "new"): 16 * 32,
    }
