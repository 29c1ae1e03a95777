"""Rules of flags that would have no effect: each names the flag that it needs.

The value is judged, not whether the flag was written: `--save-interval 0` is the default, and passes.
"""

from __future__ import annotations

from collections.abc import Callable

from tinyllama_mcore.config import engines
from tinyllama_mcore.config.flags import wrong_value
from tinyllama_mcore.config.loop_config import LoopConfig
from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import OptimizerConfig, RunConfig

Condition = Callable[[RunConfig], object]
_METAVARS = (" DIR", " FILE", " N", " PATH", " PREFIX", " A:B")


def _needs(flag: str, given: Condition, needed: str, there: Condition, why: str) -> Rule:
    """`flag` has an effect only with `needed`, which is spelled with its value; `why` says why it has none without."""
    return Rule(
        name=f"{flag} needs {needed.partition(' ')[0] if needed.endswith(_METAVARS) else needed}",
        about=About.FLAGS,
        holds=lambda run: not given(run) or bool(there(run)),
        message=lambda run: f"{flag} does nothing here, because {why}; add {needed}, or leave {flag} out",
    )


def _saves(run: RunConfig) -> bool:
    return run.checkpoint.save is not None


def _may_resume(run: RunConfig) -> bool:
    return run.checkpoint.save is not None or run.checkpoint.load is not None


def _has_wsd(run: RunConfig) -> bool:
    return run.optimizer.lr_decay_style == "WSD"


def _multiplies_in_float8(run: RunConfig) -> bool:
    return run.float8.recipe is not None


def _waits_within(run: RunConfig) -> bool:
    """Whether ranks wait for each other within a decoder layer."""
    return run.layout.tensor_model_parallel_size > 1 or run.layout.context_parallel_size > 1


_NEVER_SAVED = "this run keeps no checkpoints"
_NEVER_RESUMED = "this run neither loads nor saves checkpoints"


def _wrong_value(run: RunConfig) -> str | None:
    """Why a flag would not take what the run has in its field."""
    return next(filter(None, map(wrong_value, (run, *vars(run).values()))), None)


FLAG_RULES = (
    Rule(
        name="every value is one that its flag takes",
        about=About.FLAGS,
        holds=lambda run: _wrong_value(run) is None,
        message=lambda run: _wrong_value(run) or "",
    ),
    *(
        _needs(flag, given, "--save DIR", _may_resume, _NEVER_RESUMED)
        for flag, given in (
            ("--allow-data-change", lambda run: run.checkpoint.allow_data_change),
            ("--override-schedule", lambda run: run.checkpoint.override_schedule),
            ("--use-checkpoint-opt_param-scheduler", lambda run: run.checkpoint.use_checkpoint_opt_param_scheduler),
        )
    ),
    Rule(
        name="one schedule of the two",
        about=About.FLAGS,
        holds=lambda run: not (run.checkpoint.override_schedule and run.checkpoint.use_checkpoint_opt_param_scheduler),
        message=lambda run: (
            "--override-schedule takes this command's learning-rate schedule, --use-checkpoint-opt_param-scheduler the "
            "checkpoint's: give one of them"
        ),
    ),
    *(
        _needs(flag, given, "--lr-decay-style WSD", _has_wsd, "the learning rate follows another style")
        for flag, given in (
            ("--lr-wsd-decay-iters", lambda run: run.optimizer.lr_wsd_decay_iters is not None),
            (
                "--lr-wsd-decay-style",
                lambda run: run.optimizer.lr_wsd_decay_style != OptimizerConfig.lr_wsd_decay_style,
            ),
        )
    ),
    Rule(
        name="a constant rate has no end",
        about=About.FLAGS,
        holds=lambda run: run.optimizer.lr_decay_style != "constant" or run.optimizer.lr_decay_iters is None,
        message=lambda run: (
            f"--lr-decay-iters {run.optimizer.lr_decay_iters} does nothing here, as --lr-decay-style constant never "
            "falls; leave it out, or give another style"
        ),
    ),
    _needs(
        "--profile",
        lambda run: run.loop.profile is not None,
        "--profile-dir DIR",
        lambda run: run.loop.profile_dir,
        "a profile needs a directory to be written to",
    ),
    _needs(
        "--profile-dir",
        lambda run: run.loop.profile_dir is not None,
        "--profile A:B",
        lambda run: run.loop.profile is not None,
        "no iteration is profiled",
    ),
    Rule(
        name="profiled iterations are the run's",
        about=About.FLAGS,
        holds=lambda run: run.loop.profile is None or run.loop.profile[1] <= run.batch.train_iters,
        message=lambda run: (
            "--profile {0}:{1} must be within the run's iterations, 1 to {2}; nearest: {3}:{2}"
        ).format(
            *(run.loop.profile or ()), run.batch.train_iters, min(*(run.loop.profile or ()), run.batch.train_iters)
        ),
    ),
    _needs(
        "--overwrite",
        lambda run: run.loop.overwrite,
        "--metrics-file FILE",
        lambda run: any(
            getattr(run.loop, name) for name in ("metrics_file", "tensorboard_dir", "profile_dir", "csv_dir")
        ),
        "none of --metrics-file, --tensorboard-dir, --profile-dir and the JSON's csv_monitor is given",
    ),
    Rule(
        name="stragglers are among two processes or more",
        about=About.FLAGS,
        holds=lambda run: not run.loop.log_straggler or run.layout.world_size > 1,
        message=lambda _: (
            "--log-straggler does nothing here, because the run has one process, and there is nothing to compare it "
            "with; leave it out, or start 2 processes or more"
        ),
    ),
    Rule(
        name="stragglers of a tensor- or context-parallel group are told with fused layers",
        about=About.FLAGS,
        holds=lambda run: not run.loop.log_straggler or run.transformer_impl == "fused" or not _waits_within(run),
        message=lambda run: (
            f"--log-straggler with tensor parallel {run.layout.tensor_model_parallel_size} and context parallel "
            f"{run.layout.context_parallel_size} needs fused layers, which say where one rank waits for another; use "
            "--transformer-impl fused, or leave --log-straggler out"
        ),
    ),
    Rule(
        name="stragglers of two GPUs that exchange are told without a CUDA graph",
        about=About.FLAGS,
        holds=lambda run: not (run.loop.log_straggler and _waits_within(run) and engines.replays_a_graph(run)),
        message=lambda _: (
            "--log-straggler cannot look into the CUDA graph in which two GPUs wait for each other's sums "
            "(--tp-comm-overlap); add --no-cuda-graph, or leave --log-straggler out"
        ),
    ),
    _needs("--save-interval", lambda run: run.checkpoint.save_interval, "--save DIR", _saves, _NEVER_SAVED),
    _needs("--keep-latest", lambda run: run.checkpoint.keep_latest, "--save DIR", _saves, _NEVER_SAVED),
    _needs("--async-save", lambda run: run.checkpoint.async_save, "--save DIR", _saves, _NEVER_SAVED),
    _needs(
        "--async-save",
        lambda run: run.checkpoint.async_save,
        "--save-interval N",
        lambda run: run.checkpoint.save_interval,
        "the run saves only at its end, and waits for that save",
    ),
    _needs(
        "--eval-iters",
        lambda run: run.loop.eval_iters != LoopConfig.eval_iters,
        "--eval-interval N",
        lambda run: run.loop.eval_interval,
        "this run is never evaluated",
    ),
    *(
        _needs(flag, given, "--fp8-recipe rowwise_with_gw_hp", _multiplies_in_float8, "no layer is in float8")
        for flag, given in (
            ("--num-layers-at-start-in-bf16", lambda run: run.float8.num_layers_at_start_in_bf16),
            ("--num-layers-at-end-in-bf16", lambda run: run.float8.num_layers_at_end_in_bf16),
        )
    ),
    *(
        _needs(
            flag,
            given,
            "--tokenizer-model PATH",
            lambda run: run.data.tokenizer_model is not None,
            "the receipts of the data say what their tokenizer is",
        )
        for flag, given in (
            ("--tokenizer-type", lambda run: run.data.tokenizer_type is not None),
            ("--eod-token", lambda run: run.data.eod_token is not None),
        )
    ),
    _needs(
        "--tokenizer-model",
        lambda run: run.data.tokenizer_model is not None,
        "--data-path PREFIX",
        lambda run: run.data.blend,
        "the built-in corpus brings its own tokenizer",
    ),
)
