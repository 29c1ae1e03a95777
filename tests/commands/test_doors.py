"""Every script of tools/, and the trainer's, is a console command too, and a word after `python -m tinyllama_mcore`.

Here a console command is the function that setup.py names; tests/test_package.py starts those of an installed wheel.
"""

from __future__ import annotations

import ast
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tests.distributed.test_launchers import execute
from tinyllama_mcore.commands import start
from tinyllama_mcore.commands.table import COMMANDS, Command

TRAINER = ranks.CHECKOUT / "examples" / "pretrain_tinyllama.py"
SCRIPTS = {path.stem: path for path in (*(ranks.CHECKOUT / "tools").glob("*.py"), TRAINER)}
"""Scripts by the name of their file."""
BY_SCRIPT = [pytest.param(command, id=command.name) for command in COMMANDS]


def test_every_script_has_its_command_and_every_command_its_script() -> None:
    """By the name of the file that both call."""
    assert sorted(command.file for command in COMMANDS) == sorted(SCRIPTS)
    assert len({command.name for command in COMMANDS}) == len(COMMANDS)


def _helped(program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """`PROGRAM --help` of a script by its path or of a command by its name, its own name replaced."""
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    command = next((each for each in COMMANDS if each.program == program), None)
    with pytest.raises(SystemExit) as end:
        if command is None:
            runpy.run_path(program, run_name="__main__")
        else:
            sys.exit(getattr(start, command.file)())
    assert end.value.code == 0
    name = Path(program).name
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {name}")
    return text.replace(name, "PROGRAM")


@pytest.mark.parametrize("command", BY_SCRIPT)
def test_both_doors_give_the_same_help(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for the program's name, by which argparse also indents."""
    doors = [_helped(program, monkeypatch, capsys) for program in (str(SCRIPTS[command.file]), command.program)]
    assert doors[0].split() == doors[1].split()


@pytest.mark.parametrize("command", BY_SCRIPT)
def test_a_script_is_a_door_and_no_more(command: Command) -> None:
    """Words, imports, and a call of the command's own function: flags and exit codes are the same for both."""
    tree = ast.parse(SCRIPTS[command.file].read_text())
    called = [ast.unparse(node) for node in tree.body if not isinstance(node, ast.Expr | ast.Import)]
    assert called == [
        f"from {command.entry.replace(':', ' import ')}",
        f"if __name__ == '__main__':\n    sys.exit({command.file}())",
    ]


def module(*words: str, home: Path = ranks.CHECKOUT) -> subprocess.CompletedProcess[str]:
    """`python -m tinyllama_mcore WORDS`."""
    return execute([sys.executable, "-m", "tinyllama_mcore", *words], home)


def test_the_module_lists_the_commands_a_line_each() -> None:
    """Without an argument and for --help."""
    bare, asked = module(), module("--help")
    assert (bare.returncode, asked.returncode, bare.stderr) == (0, 0, "")
    assert bare.stdout == asked.stdout
    assert [line.split()[0] for line in bare.stdout.splitlines()[1:]] == [command.name for command in COMMANDS]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("pretran",), "error: unknown command pretran; did you mean pretrain?\n"),
        (("--local_rank=0",), "error: no command before --local_rank=0; name one of pretrain, preprocess,"),
        (("report", "none.jsonl"), "error: nothing to write: give --output FILE.html, --png FILE.png or both\n"),
        (("pretrain", "--deepspeed_config", "zero4"), "error: zero4: no such file, and no DeepSpeed JSON of this name"),
    ],
)
def test_the_module_refuses_as_a_command_does(words: tuple[str, ...], says: str) -> None:
    """Exit code 2, one line."""
    done = module(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.of_a_job], ids=lambda each: each.name)
def test_a_rank_does_not_end_with_the_interpreter(command: Command) -> None:
    """Whoever started it, no line after it runs: libraries' threads would end such a process with another exit code."""
    program = f"from tinyllama_mcore.commands import start; start.{command.file}(); print('the interpreter went on')"
    done = execute([sys.executable, "-c", program, "--no-such-flag"], ranks.CHECKOUT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--no-such-flag" in done.stderr


@pytest.mark.parametrize("launcher", ["torchrun", "python"])
def test_the_module_trains_under_a_launcher(launcher: str, python: Path, corpus: list[str], tmp_path: Path) -> None:
    """Two iterations by a JSON's name. Where the deepspeed launcher puts --local_rank is where it stands here."""
    argv = [*flags(Mode(sharding="zero2"), tmp_path, corpus), "--exit-interval", "2", "--metrics-file", "m.jsonl"]
    argv[argv.index("--deepspeed_config") + 1] = "zero2"
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(ranks.free_port())]
    started = [str(python), *(torchrun if launcher == "torchrun" else [])]
    done = execute([*started, "-m", "tinyllama_mcore", "--local_rank=0", "pretrain", *argv], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(ranks.metrics(tmp_path / "m.jsonl")) == 2
    assert f"world        {1 if launcher == 'python' else 2} = tensor" in done.stdout
    assert "(zero2)" in done.stdout


def test_a_reader_that_leaves_is_no_fault() -> None:
    """`... | head`: nothing on stderr, and the code that a shell gives a program so ended."""
    command = [sys.executable, "-m", "tinyllama_mcore"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ranks.CHECKOUT) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE
