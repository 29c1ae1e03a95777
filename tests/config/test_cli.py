"""From argv to a RunConfig: who gives each value, what two places may not say, and that no torch is needed for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.config.conftest import REPOSITORY
from tinyllama_mcore.config import cli, flags, records
from tinyllama_mcore.config.data_config import LaterBlend
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.recipes import RECIPES
from tinyllama_mcore.config.schema import RunConfig

ZERO1 = str(REPOSITORY / "ds_configs/zero1.json")

# A run's whole command line. A flag that comes or goes is a change of the product: say so in CHANGELOG.md.
OPTIONS = [
    "--allow-data-change",
    "--async-save",
    "--attention-backend",
    "--compile",
    "--context-parallel-size",
    "--cuda-graph",
    "--data-cache-path",
    "--data-path",
    "--data-path-from",
    "--deepspeed_config",
    "--deterministic-mode",
    "--distributed-timeout-minutes",
    "--dry-run",
    "--eod-token",
    "--eval-interval",
    "--eval-iters",
    "--exit-duration",
    "--exit-interval",
    "--fp8-recipe",
    "--global-batch-size",
    "--inter-document-masking",
    "--iteration",
    "--keep-latest",
    "--load",
    "--local_rank",
    "--log-grad-norm-by-group",
    "--log-interval",
    "--log-straggler",
    "--loss-spike-deviations",
    "--lr",
    "--lr-decay-iters",
    "--lr-decay-style",
    "--lr-warmup-iters",
    "--lr-wsd-decay-iters",
    "--lr-wsd-decay-style",
    "--make-vocab-size-divisible-by",
    "--max-skipped-in-a-row",
    "--metrics-file",
    "--micro-batch-size",
    "--min-lr",
    "--no-compile",
    "--no-cuda-graph",
    "--no-load",
    "--no-tp-comm-overlap",
    "--num-layers-at-end-in-bf16",
    "--num-layers-at-start-in-bf16",
    "--override-opt_param-scheduler",
    "--override-schedule",
    "--overwrite",
    "--pipeline-model-parallel-size",
    "--pipeline-num-layers",
    "--profile",
    "--profile-dir",
    "--rampup-batch-size",
    "--recipe",
    "--recompute-granularity",
    "--save",
    "--save-interval",
    "--seed",
    "--seq-length",
    "--sequence-parallel",
    "--split",
    "--swiglu-backend",
    "--tensor-model-parallel-size",
    "--tensorboard-dir",
    "--tokenizer-model",
    "--tokenizer-type",
    "--tp-comm-overlap",
    "--train-iters",
    "--train-tokens",
    "--transformer-impl",
    "--use-checkpoint-opt_param-scheduler",
    "--valid-data-path",
    "--virtual-pipeline-model-parallel-size",
    "--vocab-size",
    "--world-size",
]

# Judges a command line where nothing but the standard library can be imported, and says whether torch crept in.
JUDGE = """
import sys
sys.path.insert(0, {repository!r})
from tinyllama_mcore.config import cli, describe
from tinyllama_mcore.config.rules import legality
def program():
    run = cli.parse(sys.argv[1:], world_size={world}, has_gpu=lambda: True)
    legality.check(run, has_gpu=lambda: True)
    print(*describe.lines(run), sep="\\n")
code = cli.exit_code(program)
assert "torch" not in sys.modules
sys.exit(code)
"""


def judge(*argv: str, world: int = 1) -> subprocess.CompletedProcess[str]:
    """A process of its own, without site-packages."""
    program = JUDGE.format(repository=str(REPOSITORY), world=world)
    command = [sys.executable, "-I", "-S", "-c", program, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_is_frozen() -> None:
    """The options are these and no others."""
    assert flags.option_strings() == OPTIONS


def test_later_blends_begin_at_the_sample_of_their_iteration(make_run: Callable[..., RunConfig]) -> None:
    """Weights are shares; a batch that grows counts."""
    argv = ("--recipe", "tinyllama-debug", "--data-path", "a", "--data-path-from", "10", "3", "b", "1", "c")
    argv += ("--data-path-from", "20", "d")
    constant = (
        LaterBlend(first_sample=160, blend=((0.75, "b"), (0.25, "c")), iteration=10),
        LaterBlend(first_sample=320, blend=((1.0, "d"),), iteration=20),
    )
    assert make_run(*argv, judge=False).data.later_blends == constant
    ramp = make_run(*argv, "--micro-batch-size", "4", "--rampup-batch-size", "4", "4", "64", judge=False)
    assert [later.first_sample for later in ramp.data.later_blends] == [
        ramp.batch.sizes.samples_before(10),
        ramp.batch.sizes.samples_before(20),
    ]
    assert ramp.data.later_blends[0].first_sample < 160


def test_every_flag_has_help_with_its_default() -> None:
    """`--help` needs no torch and leaves no flag without its default."""
    shown = judge("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    text = " ".join(shown.stdout.split())
    for flag in flags.flags():
        assert flag.name in text
        assert flag.help
        assert flag.default
    assert text.count("(default: ") == len(list(flags.flags()))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), "--deepspeed_config is missing"),
        (("--deepspeed_config", "ds_configs/zero4.json"), "ds_configs/zero4.json: no such file; did you mean ds_confi"),
        (("--deepspeed_config", "BAD"), "line 1, column 28: not JSON: a trailing comma"),
        (("--deepspeed_config", "TYPO"), "unknown key 'zero_optimisation'; did you mean zero_optimization?"),
        (("--deepspeed_config", ZERO1, "--recipe", "tinylama-1.1b"), "no such recipe; did you mean tinyllama-1.1b?"),
        (("--deepspeed_config", ZERO1, "--train-iter", "5"), "unknown flag --train-iter; did you mean --train-iters?"),
        (("--deepspeed_config", ZERO1, "--train-iters", "0"), "must be a whole number, at least 1; got '0'"),
        (("--deepspeed_config", ZERO1, "--lr", "fast"), "--lr: must be a number, such as 4e-4; got 'fast'"),
        (("--deepspeed_config", ZERO1, "--lr", "nan"), "--lr: must be a number, such as 4e-4; got 'nan'"),
        (("--deepspeed_config", ZERO1, "--split", "99,1"), "must be three shares"),
        (("--deepspeed_config", ZERO1, "--attention-backend", "flsh"), "invalid choice: 'flsh'"),
        (("--deepspeed_config", ZERO1, "--save"), "--save: expected one argument"),
        (("--deepspeed_config", ZERO1, "stray"), "unrecognized arguments: stray"),
        (("--deepspeed_config", ZERO1, "--tensor-model-parallel-size", "3"), "does not divide the 32 attention heads"),
        (("--deepspeed_config", ZERO1, "--data-path", "a", "b"), "with more than one dataset, a weight"),
        (
            ("--deepspeed_config", ZERO1, "--data-path-from", "a", "b"),
            "--data-path-from a b: after how many iterations",
        ),
        (("--deepspeed_config", ZERO1, "--data-path-from", "9"), "--data-path-from 9: after how many iterations must"),
        (
            ("--deepspeed_config", ZERO1, "--data-path-from", "9", "a", "b"),
            "--data-path-from 9 a b: with more than one",
        ),
        (("--deepspeed_config", ZERO1, "--train-tokens", "3e12"), "nearest: 2999999004672 or 3000001101824"),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_line_and_no_torch(
    write_json: Callable[..., str], argv: tuple[str, ...], expected: str
) -> None:
    """A process without site-packages judges it, in under three seconds."""
    files = {"BAD": '{"train_batch_size": "auto",}', "TYPO": '{"zero_optimisation": {"stage": 3}}'}
    argv = tuple(write_json(files[word]) if word in files else word for word in argv)
    started = time.monotonic()
    ended = judge(*argv)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert expected in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert time.monotonic() - started < 3


def test_a_right_command_line_needs_no_torch_either() -> None:
    """The whole way from argv to the printed arithmetic is standard library."""
    ended = judge("--deepspeed_config", ZERO1, world=16)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "1,430,512 iterations = 3,000,001,101,824 tokens" in ended.stdout


def test_only_one_rank_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    """All ranks leave with 2; those told to be silent print nothing."""

    def program() -> None:
        raise ConfigError("no")

    assert cli.exit_code(program, speak=False) == 2
    assert capsys.readouterr().err == ""
    assert cli.exit_code(lambda: None) == 0


def test_dashes_and_underscores_are_the_same(make_run: Callable[..., RunConfig]) -> None:
    """In every flag, with its value behind a space or an equals sign."""
    dashes = make_run("--micro-batch-size", "2", "--lr-warmup-iters=7", "--no-compile")
    assert make_run("--micro_batch_size", "2", "--lr_warmup_iters=7", "--no_compile") == dashes
    assert cli.parse(["--deepspeed-config", ZERO1], world_size=1, has_gpu=lambda: True) == make_run()


def test_the_launchers_flag_changes_nothing(make_run: Callable[..., RunConfig]) -> None:
    """The deepspeed launcher adds it; LOCAL_RANK says the same."""
    assert make_run("--local_rank=1") == make_run("--local-rank", "1") == make_run()


def test_every_flag_reaches_the_run(make_run: Callable[..., RunConfig]) -> None:
    """No flag without an effect."""
    argv = {
        "--recipe": "tinyllama-1.1b",
        "--seed": "7",
        "--split": "98,1,1",
        "--tokenizer-model": "t.model",
        "--tokenizer-type": "GPTSentencePieceTokenizer",
        "--eod-token": "<end>",
        "--vocab-size": "32001",
        "--make-vocab-size-divisible-by": "128",
        "--data-cache-path": "cache",
        "--seq-length": "1024",
        "--micro-batch-size": "2",
        "--global-batch-size": "64",
        "--train-iters": "3e3",
        "--lr": "1e-3",
        "--min-lr": "1e-5",
        "--lr-warmup-iters": "20",
        "--tensor-model-parallel-size": "2",
        "--recompute-granularity": "full",
        "--attention-backend": "sdpa",
        "--save": "out",
        "--load": "in",
        "--iteration": "7",
        "--save-interval": "100",
        "--keep-latest": "3",
        "--exit-interval": "50",
        "--exit-duration": "1.5",
        "--eval-interval": "10",
        "--eval-iters": "2",
        "--log-interval": "5",
        "--metrics-file": "m.jsonl",
        "--tensorboard-dir": "tb",
        "--loss-spike-deviations": "6",
        "--max-skipped-in-a-row": "4",
        "--distributed-timeout-minutes": "30",
    }
    words = [word for pair in argv.items() for word in pair]
    run = make_run(
        *words,
        "--sequence-parallel",
        "--compile",
        "--async-save",
        "--log-straggler",
        "--log-grad-norm-by-group",
        "--allow-data-change",
        "--data-path",
        "3",
        "a",
        "1",
        "b",
        world=4,
        judge=False,
    )
    assert run.data.blend == ((0.75, "a"), (0.25, "b"))
    assert run.data.split == (98.0, 1.0, 1.0)
    assert (run.data.tokenizer_model, run.data.cache_dir, run.seed) == ("t.model", "cache", 7)
    assert (run.data.tokenizer_type, run.data.eod_token) == ("GPTSentencePieceTokenizer", "<end>")
    assert (run.model.vocab_size, run.make_vocab_size_divisible_by) == (32001, 128)
    batch, layout, loop, kept = run.batch, run.layout, run.loop, run.checkpoint
    assert (batch.seq_length, batch.micro_batch_size, batch.global_batch_size, batch.train_iters) == (1024, 2, 64, 3000)
    assert (run.optimizer.lr, run.optimizer.min_lr, run.optimizer.lr_warmup_iters) == (1e-3, 1e-5, 20)
    assert (layout.tensor_model_parallel_size, layout.sequence_parallel, layout.data_parallel_size) == (2, True, 2)
    assert (layout.recompute_granularity, run.attention_backend, run.compile) == ("full", "sdpa", True)
    assert (kept.save, kept.load) == ("out", "in")
    assert (kept.save_interval, kept.keep_latest, kept.async_save) == (100, 3, True)
    assert kept.allow_data_change
    assert (loop.exit_interval, loop.exit_duration, loop.eval_interval, loop.eval_iters) == (50, 1.5, 10, 2)
    assert (loop.loss_spike_deviations, loop.max_skipped_in_a_row, loop.distributed_timeout_minutes) == (6, 4, 30)
    assert loop.log_straggler and loop.log_grad_norm_by_group
    assert (loop.log_interval, loop.metrics_file, loop.tensorboard_dir) == (5, "m.jsonl", "tb")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--tokenizer-type", "Llama2Tokenizer"), "puts BOS before each text.* give GPTSentencePieceTokenizer"),
        (("--tokenizer-type", "GPT2BPETokenizer"), "give HuggingFaceTokenizer, and the tokenizer.json"),
        (("--tokenizer-type", "TikTokenizer"), "give HuggingFaceTokenizer, and the tokenizer.json"),
        (("--tokenizer-type", "NullTokenizer"), "leave it out"),
        (("--tokenizer-type", "BertWordPieceCase"), "must be one of HuggingFaceTokenizer, SentencePieceTokenizer, "),
        (("--vocab-file", "vocab.json", "--merge_file", "m"), "--vocab-file belongs to --tokenizer-type GPT2BPETok"),
        (("--merge_file", "merges.txt"), "--merge_file belongs to --tokenizer-type GPT2BPETokenizer, which reads"),
        (("--vocab-size", "0"), "must be a whole number, at least 1"),
    ],
)
def test_megatrons_words_for_tokenizers(make_run: Callable[..., RunConfig], argv: tuple[str, ...], says: str) -> None:
    """A command that was copied is told what to change."""
    with pytest.raises(ConfigError, match=says):
        make_run(*argv, judge=False)


def test_validation_on_datasets_of_its_own(make_run: Callable[..., RunConfig]) -> None:
    """All of --data-path is trained on then; a --split beside it would say something else."""
    data = make_run("--valid-data-path", "1", "v", "3", "w", "--data-path", "a", judge=False).data
    assert (data.blend, data.valid_blend, data.split) == (
        ((1.0, "a"),),
        ((0.25, "v"), (0.75, "w")),
        (100.0, 0.0, 0.0),
    )
    with pytest.raises(ConfigError, match="--valid-data-path and --split both say what to validate on"):
        make_run("--valid-data-path", "v", "--split", "99,1,0")


@pytest.mark.parametrize(
    ("flag", "ds", "expected"),
    [
        (
            ("--lr", "1e-3"),
            {"optimizer": {"params": {"lr": 3e-4}}},
            "--lr 0.001 on the command line, but optimizer.params.lr is 0.0003 in",
        ),
        (("--micro-batch-size", "4"), {"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu is 8 in"),
        (
            ("--global-batch-size", "16"),
            {"train_batch_size": 32},
            "--global-batch-size 16 on the command line, but train_batch_size is 32 in",
        ),
    ],
)
def test_two_numbers_for_one_value_are_refused(
    make_run: Callable[..., RunConfig], flag: tuple[str, str], ds: dict[str, Any], expected: str
) -> None:
    """Both places are named."""
    with pytest.raises(ConfigError) as told:
        make_run(*flag, ds=ds)
    assert expected in str(told.value)
    assert "leave " + flag[0] in str(told.value)


def test_the_same_number_twice_is_no_contradiction(make_run: Callable[..., RunConfig]) -> None:
    """Only a difference is refused."""
    run = make_run("--global-batch-size", "32", ds={"train_batch_size": 32, "zero_optimization": {"stage": 1}})
    assert run.batch.global_batch_size == 32


def test_the_recipe_is_chosen_and_said(make_run: Callable[..., RunConfig]) -> None:
    """By the machine, and with a sentence in the notes; a named recipe needs none."""
    assert make_run(gpu=True).recipe == "tinyllama-1.1b"
    assert make_run(gpu=True).notes[0] == "no --recipe given: tinyllama-1.1b, as there is a GPU"
    assert make_run(gpu=False).recipe == "tinyllama-debug"
    assert make_run(gpu=False).notes[0] == "no --recipe given: tinyllama-debug, as there is no GPU here"
    assert make_run("--recipe", "tinyllama-1.1b", "--save", "out", gpu=False).notes == ()


def test_a_run_that_keeps_nothing_says_so(make_run: Callable[..., RunConfig]) -> None:
    """Once, with the flags whose help speaks of a checkpoint."""
    kept = "no --save given: this run keeps no checkpoint"
    argv = ("--recipe", "tinyllama-debug")
    assert make_run(*argv).notes == (kept,)
    assert make_run(*argv, "--exit-interval", "5").notes == (f"{kept}; --exit-interval exits without one",)
    assert make_run(*argv, "--exit-interval", "5", "--exit-duration", "1").notes == (
        f"{kept}; --exit-interval exits without one; --exit-duration exits without one",
    )
    assert make_run(*argv, "--exit-interval", "5", "--save", "out").notes == ()


@pytest.mark.parametrize("spelled", ["--override-schedule", "--override-opt_param-scheduler", "--override_schedule"])
def test_megatrons_spellings_are_taken(spelled: str, make_run: Callable[..., RunConfig]) -> None:
    """One switch by several names."""
    assert make_run("--save", "out", spelled).checkpoint.override_schedule
    assert make_run(
        "--save", "out", "--use-checkpoint-opt-param-scheduler"
    ).checkpoint.use_checkpoint_opt_param_scheduler


def test_iterations_and_tokens_are_two_views_of_one_number(make_run: Callable[..., RunConfig]) -> None:
    """Either may be given, both only where they agree."""
    per_iteration = 1024 * 2048
    assert make_run("--train-tokens", str(3000 * per_iteration)).batch.train_iters == 3000
    make_run("--train-tokens", str(3000 * per_iteration), "--train-iters", "3000")
    with pytest.raises(ConfigError, match="the two must agree; give one of them"):
        make_run("--train-tokens", str(3000 * per_iteration), "--train-iters", "3001")
    with pytest.raises(ConfigError, match=f"nearest: {per_iteration}$"):
        make_run("--train-tokens", "5")


def test_another_batch_than_the_recipes_says_what_the_length_means_now(make_run: Callable[..., RunConfig]) -> None:
    """Half the batch for as many iterations is half the tokens: litgpt's trap, said aloud."""
    run = make_run("--recipe", "tinyllama-1.1b", "--global-batch-size", "512", "--save", "out")
    assert run.notes == (
        "1,430,512 iterations are the recipe's for 2,097,152 tokens each; with 1,048,576 they are "
        "1,500,000,550,912 tokens, not 3,000,001,101,824",
    )


def test_a_micro_batch_that_nobody_gave_fits_the_ranks(make_run: Callable[..., RunConfig]) -> None:
    """It is lowered, and the global batch is not."""
    run = make_run("--recipe", "tinyllama-debug", world=8)
    assert (run.batch.micro_batch_size, run.num_micro_batches, run.batch.global_batch_size) == (2, 1, 16)
    assert run.notes[0].startswith("micro batch 2 in place of the recipe's 4")


def test_one_prefix_needs_no_weight(make_run: Callable[..., RunConfig]) -> None:
    """More than one needs a weight each."""
    assert make_run("--data-path", "a", judge=False).data.blend == ((1.0, "a"),)
    assert make_run().data.blend == ()
    for items in (("a", "b"), ("0.5", "a", "b"), ("a", "0.5"), ("0.5", "a", "x", "b")):
        with pytest.raises(ConfigError, match=r"--data-path 0\.7 PREFIX1 0\.3 PREFIX2"):
            make_run("--data-path", *items, judge=False)


def test_a_run_goes_on_from_its_save_directory(make_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Only from a finished checkpoint; an unfinished one is told, not taken silently for none."""
    save = str(tmp_path)
    assert make_run("--save", save).checkpoint.load is None
    (tmp_path / "iter_0000010").mkdir()
    torn = make_run("--save", save)
    assert torn.checkpoint.load is None
    assert "iter_0000010 was never finished, and there is no other: starting from iteration 0" in torn.notes[-1]
    (tmp_path / "iter_0000010/manifest.json").write_text(json.dumps({}))
    going_on = make_run("--save", save)
    assert going_on.checkpoint.load == save
    assert going_on.notes[-1] == f"--save {save} holds a checkpoint: resuming from it"
    assert make_run("--save", save, "--no-load").checkpoint.load is None
    with pytest.raises(ConfigError, match="contradict each other"):
        make_run("--load", save, "--no-load")
    with pytest.raises(ConfigError, match="--no-load does nothing here"):
        make_run("--no-load")


def test_load_is_where_a_run_begins(make_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    """The same command again resumes from its own checkpoints, and says so; one directory for both is one directory."""
    source, save = str(tmp_path / "source"), str(tmp_path / "save")
    command = ("--load", source, "--iteration", "40", "--save", save)
    (tmp_path / "source/iter_0000040").mkdir(parents=True)
    (tmp_path / "source/iter_0000040/manifest.json").write_text("{}")
    begins = make_run(*command).checkpoint
    assert (begins.load, begins.iteration) == (source, 40)
    (tmp_path / "save/iter_0000050").mkdir(parents=True)
    (tmp_path / "save/iter_0000050/manifest.json").write_text("{}")
    resumed = make_run(*command)
    assert (resumed.checkpoint.load, resumed.checkpoint.iteration) == (save, None)
    assert f"resuming from it, and not from --load {source} --iteration 40" in resumed.notes[-1]
    same = make_run("--load", f"{save}/../save", "--iteration", "40", "--save", save).checkpoint
    assert (same.load, same.iteration) == (f"{save}/../save", 40)


def test_a_pointer_counts_as_a_checkpoint(make_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    """A run was saved there: if it is gone, loading says so, and nothing starts from zero."""
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")  # what it points to may be lost: load will say
    assert make_run("--save", str(tmp_path)).checkpoint.load == os.fspath(tmp_path)


@pytest.mark.parametrize("world", [1, 2, 16, 512])
def test_the_batch_does_not_grow_with_the_nodes(world: int) -> None:
    """Known bug 7: however many processes share it, an iteration of the paper's recipe is its 2,097,152 tokens."""
    argv = ["--deepspeed_config", ZERO1, "--recipe", "tinyllama-1.1b"]
    run = cli.parse(argv, world_size=world, has_gpu=lambda: True)
    assert (run.batch.global_batch_size, run.batch.tokens_per_iteration) == (1024, 2_097_152)
    assert run.batch.micro_batch_size * run.num_micro_batches * run.layout.data_parallel_size == 1024


def test_another_style_leaves_behind_what_the_recipe_said_of_its_own(
    make_run: Callable[..., RunConfig], write_json: Callable[..., str]
) -> None:
    """A recipe's WSD, given up for another style: its decay goes with it, and nobody has to unset it."""
    block = {"lr": 1e-3, "min_lr": 1e-4, "lr_warmup_iters": 2, "lr_decay_iters": 50, "lr_decay_style": "WSD"}
    recipe = records.to_plain(RECIPES["tinyllama-debug"]) | {"optimizer": block | {"lr_wsd_decay_iters": 7}}
    named = ("--recipe", write_json(recipe, "recipe.json"))
    of = {style: make_run(*named, "--lr-decay-style", style).optimizer for style in ("WSD", "linear", "constant")}
    assert [(o.lr_wsd_decay_iters, o.lr_decay_iters) for o in of.values()] == [(7, 50), (None, 50), (None, None)]
    with pytest.raises(ConfigError, match="--min-lr 0 does nothing here, as --lr-decay-style constant never falls"):
        make_run(*named, "--lr-decay-style", "constant", "--min-lr", "0")


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        (("4", "4"), "argument --rampup-batch-size: expected 3 arguments"),
        (("4", "4", "100", "8"), "unrecognized arguments: 8"),
        (("4", "0", "100"), "argument --rampup-batch-size: must be a whole number, at least 1; got '0'"),
        (("16", "4", "100"), "START must be below --global-batch-size 16, to which it grows; nearest: 12"),
        (("4", "5", "100"), "steps of 5 do not lead from 4 to --global-batch-size 16; nearest INCREMENT that does: 4"),
    ],
    ids=str,
)
def test_a_ramp_that_does_not_end_at_the_global_batch_is_refused(
    ramp: tuple[str, ...], message: str, make_run: Callable[..., RunConfig]
) -> None:
    """By the reader of its flag, or before a length in tokens is worked out from it."""
    with pytest.raises(ConfigError) as told:
        make_run("--recipe", "tinyllama-debug", "--rampup-batch-size", *ramp)
    assert message in str(told.value)


def test_a_ramp_and_its_length(make_run: Callable[..., RunConfig]) -> None:
    """Sizes 4, 4, 8, 12 and then 16: iterations and tokens are two views, and the micro batch fits them all."""
    ramp = ("--recipe", "tinyllama-debug", "--rampup-batch-size", "4", "4", "24")
    run = make_run(*ramp, "--train-iters", "20", world=2)
    sizes = [4, 4, 8, 12, *[16] * 16]
    assert (run.batch.train_tokens, run.batch.micro_batch_size) == (sum(sizes) * 128, 2)
    assert make_run(*ramp, "--train-tokens", str(sum(sizes) * 128), world=2).batch == run.batch
    with pytest.raises(ConfigError, match=r"no whole number of iterations: .* nearest: 36352 or 38400"):
        make_run(*ramp, "--train-tokens", str(sum(sizes) * 128 + 1))
    with pytest.raises(ConfigError, match="--train-iters 20 is 36352 tokens"):
        make_run(*ramp, "--train-iters", "20", "--train-tokens", "40960")
    (note,) = [note for note in make_run(*ramp).notes if "iterations are the recipe's" in note]
    assert note.endswith("with 2,048 after a ramp they are 200,192 tokens, not 204,800")
