"""When a run is kept, logged, evaluated and left: the parts of the schema that checkpoints and the loop take.

Neighbour: `schema` has the other parts, and the run that they make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where a run is kept, and when."""

    save: Annotated[str | None, "directory that checkpoints are written to"] = None
    load: Annotated[str | None, "directory that the run resumes from; it must hold a checkpoint"] = None
    no_load: Annotated[bool, "start from iteration 0, even if --save holds a checkpoint"] = False
    iteration: Annotated[int | None, "checkpoint to resume from; later ones in --save are renamed"] = None
    save_interval: Annotated[int, "iterations between checkpoints; 0: only at the end"] = 0
    keep_latest: Annotated[int, "newest checkpoints to keep; 0: all"] = 0
    allow_data_change: Annotated[
        bool, "resume with other datasets or blend weights; datasets that stay continue where they were"
    ] = False
    override_schedule: Annotated[
        bool, "resume with this command's learning-rate schedule, even if the checkpoint's gives other rates"
    ] = False
    use_checkpoint_opt_param_scheduler: Annotated[
        bool, "resume with the checkpoint's learning-rate schedule and weight decay in place of this command's"
    ] = False
    async_save: Annotated[bool, "keep training while a checkpoint is written from a copy in host memory"] = False


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """The `wandb` block of the JSON. WANDB_MODE and the other variables of wandb hold beside it."""

    project: str = "deepspeed"
    """Name of the project; DeepSpeed's default."""
    group: str | None = None
    """Runs of one name are shown together."""
    team: str | None = None
    """Whose the project is; wandb's `entity`."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """When the loop logs, evaluates and leaves."""

    log_interval: Annotated[int, "iterations between log lines"] = 1
    eval_interval: Annotated[int, "iterations between evaluations; 0: never"] = 0
    eval_iters: Annotated[int, "global batches in one evaluation"] = 10
    exit_interval: Annotated[int, "save (with --save) and exit when the iteration is a multiple of N; 0: never"] = 0
    exit_duration: Annotated[float, "save (with --save) and exit after this many minutes; 0: never"] = 0.0
    loss_spike_deviations: Annotated[
        float, "skip an update whose loss is D standard deviations above the mean of the last 128 losses; 0: never"
    ] = 0.0
    max_skipped_in_a_row: Annotated[
        int, "after K skipped updates in a row, roll back to the checkpoint before them and continue with new samples"
    ] = 10
    distributed_timeout_minutes: Annotated[
        float, "minutes without progress after which every rank prints its stacks and the run ends; 0: never"
    ] = 10.0
    metrics_file: Annotated[str | None, "file for metrics: a JSON object a line, of each iteration and event"] = None
    tensorboard_dir: Annotated[
        str | None, "directory for TensorBoard event files; the JSON's `tensorboard` block can name it too"
    ] = None
    csv_dir: str | None = None
    """Directory for CSV files, one a scalar: the JSON's `csv_monitor` block."""
    wandb: WandbConfig | None = None
    """Weights & Biases: the JSON's `wandb` block."""
    log_straggler: Annotated[
        bool, "at each --log-interval the slowest rank, by its own forward passes, and the longest wait for data"
    ] = False
    log_grad_norm_by_group: Annotated[
        bool, "at each --log-interval gradient norms of embedding, head and each layer's attention, MLP and norms"
    ] = False
    profile: Annotated[
        tuple[int, int] | None,
        "profile iterations A to B: time by kind of kernel, torch's trace, a snapshot of the GPU's memory",
    ] = None
    profile_dir: Annotated[str | None, "directory for the profile"] = None
    overwrite: Annotated[
        bool,
        "overwrite what another run wrote to --metrics-file, --tensorboard-dir or --profile-dir, or as csv_monitor",
    ] = False
