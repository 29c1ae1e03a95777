"""Every command, once: its name, the file that parses it, and what it does in a line.

`setup.py` makes console commands of the rows, `tinyllama-NAME`, and `python -m tinyllama_mcore` lists and starts them;
a script of tools/ or examples/ with the file's name is its door from a checkout. Only the standard library is imported,
as setup.py runs this file before anything is installed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command line; its module has a function `main(argv)`, which returns the exit code."""

    name: str
    file: str
    """Its script in tools/ or examples/, without the ending, and its file in this room."""
    does: str
    """In a line."""
    elsewhere: str = ""
    """Its module, where that is no file of this room."""
    of_a_job: bool = False
    """Whether each of its processes is a rank, which ends as ranks do (`parallel.launch.leave`)."""

    @property
    def program(self) -> str:
        """As it is typed where the package is installed."""
        return f"tinyllama-{self.name}"

    @property
    def module(self) -> str:
        """Dotted name of what parses it."""
        return self.elsewhere or f"tinyllama_mcore.commands.{self.file}"

    @property
    def entry(self) -> str:
        """What its console command calls, as setup.py spells it."""
        return f"tinyllama_mcore.commands.start:{self.file}"


COMMANDS = (
    Command(
        name="pretrain",
        file="pretrain_tinyllama",
        does="pretrain, under any launcher",
        elsewhere="tinyllama_mcore.pretrain",
        of_a_job=True,
    ),
    Command(name="preprocess", file="preprocess_data", does="raw text files to a .bin/.idx dataset"),
    Command(name="merge-datasets", file="merge_datasets", does="several .bin/.idx datasets to one"),
    Command(name="import-tokens", file="import_tokens", does="token files of other programs to a .bin/.idx dataset"),
    Command(name="inspect", file="inspect_data", does="show and check what a dataset holds, or what a run draws"),
    Command(name="plan", file="plan_layout", does="memory and speed of every legal layout, without a GPU"),
    Command(
        name="preflight",
        file="preflight",
        does="what is wrong with a job's machines, from all of its ranks",
        of_a_job=True,
    ),
    Command(name="evaluate", file="evaluate", does="score models by lm-evaluation-harness, beside the paper's tables"),
    Command(name="report", file="report", does="runs as one HTML page"),
    Command(name="merge", file="merge_to_hf", does="a checkpoint to a Hugging Face model"),
    Command(name="import", file="convert_from_hf", does="a Hugging Face Llama to a checkpoint"),
    Command(name="verify", file="verify_checkpoint", does="compare checkpoints with their checksums"),
    Command(name="benchmark", file="benchmark", does="this trainer beside its peers, in one run"),
    Command(name="benchmark-data", file="benchmark_data", does="preprocessing beside other people's ways"),
    Command(name="benchmark-loader", file="benchmark_loader", does="how fast a rank gets its batches"),
)
