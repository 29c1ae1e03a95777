"""A stand-in for `python` whose imports are made: a script starts in a tenth of a second, and not in ten.

`start` gives the path of an executable. Who runs it, a launcher too, gives it words, directory, environment, files and
signals as to any Python. It asks a server that has imported the libraries for a fork of itself, which becomes the
script, and ends as that ends. What stays unseen is an import that a script lacks: tests/test_package.py,
tests/test_readme.py and tests/distributed/test_launchers.py start commands by the real interpreter.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from tests.distributed.ranks import PRELOADED

NAME = "forks of python"
"""The server among a test process's children."""
ALSO = ("matplotlib.pyplot", "torch.distributed.run", "tinyllama_mcore.hf.export", "tinyllama_mcore.hf.importing")
"""What the server imports besides: launchers and tools need it, ranks do not."""
LAUNCHERS = ("torchrun", "deepspeed")
"""Programs that stand beside the stand-in too: they and their ranks are forks."""
STAND_IN = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
asked = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(asked).to_bytes(8, "big")], [0, 1, 2])
server.sendall(asked)
fork = int.from_bytes(server.recv(8), "big")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: os.kill(fork, number))
status = int.from_bytes(server.recv(8), "big", signed=True)
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def others() -> list[BaseProcess]:
    """The processes of multiprocessing that this one has started and that are alive, but for the server."""
    return [child for child in multiprocessing.active_children() if child.name != NAME]


@contextlib.contextmanager
def start(home: Path) -> Iterator[Path]:
    """The path of the stand-in, which is named `python`; its server ends with the context, or with this process.

    Beside it are `LAUNCHERS`, so that a `PATH` which begins with its directory has all three.
    """
    address, program = home / "server", home / "python"
    scripts = {"python": STAND_IN.format(python=sys.executable, address=str(address))}
    for name in LAUNCHERS:
        real = Path(sys.executable).with_name(name).read_text()
        scripts[name] = f"#!{program}\n{real.partition(chr(10))[2]}"  # another interpreter in the first line
    for name, text in scripts.items():
        (home / name).write_text(text)
        (home / name).chmod(0o755)
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload([*PRELOADED])
    listens = fork.Event()
    server = fork.Process(target=_serve, args=(str(address), listens), name=NAME)
    server.start()
    assert listens.wait(120), "the server of forks does not listen"
    yield program
    server.kill()
    server.join()


def _serve(address: str, listens: Any) -> None:  # noqa: ANN401  multiprocessing has no public name for it
    """A fork for whoever asks, until the process that started this one has ended."""
    for name in ALSO:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork that collects garbage would copy all that the imports left
    listener, parent = socket.socket(socket.AF_UNIX), multiprocessing.parent_process()
    assert parent is not None
    listener.bind(address)
    listener.listen(64)
    listens.set()
    keepers = 0
    while listener in select.select([listener, parent.sentinel], [], [])[0]:
        client = listener.accept()[0]
        while keepers and os.waitpid(-1, os.WNOHANG)[0]:
            keepers -= 1
        keepers += 1
        if os.fork() == 0:
            listener.close()
            _keep(client)
        client.close()


def _keep(client: socket.socket) -> NoReturn:
    """Fork the script, tell the stand-in how it ends, and end it where the stand-in is killed."""
    length, files, _, _ = socket.recv_fds(client, 8, 3)
    argv, cwd, environment = json.loads(client.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
    fork = os.fork()
    if fork == 0:
        client.close()
        _become(argv, cwd, environment, files)
    for file in files:
        os.close(file)
    client.sendall(fork.to_bytes(8, "big"))

    def end_with_the_stand_in() -> None:
        if not client.recv(1):
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the stand-in with it
                os.kill(fork, signal.SIGKILL)

    threading.Thread(target=end_with_the_stand_in, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    with contextlib.suppress(OSError):
        client.sendall(status.to_bytes(8, "big", signed=True))
    os._exit(0)


def _become(argv: list[str], cwd: str, environment: dict[str, str], files: list[int]) -> NoReturn:
    """Run the words as the interpreter would, in this process, to its end."""
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115  open to the end
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable, *words = argv
    code: object = 0
    try:
        _run(words)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(int(code or 0))


def _run(words: list[str]) -> None:
    """`[-u] -m MODULE ...`, `-c CODE ...` or `SCRIPT ...`, as `__main__`."""
    while words[0] == "-u":
        del words[0]
        sys.stdout.reconfigure(write_through=True)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(words[1], main.__dict__)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")
