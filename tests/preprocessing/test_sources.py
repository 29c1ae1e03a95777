"""Raw files behind URLs: read from a web server and an S3 server that are processes, by the tool as another process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest

from tests.distributed import ranks
from tests.preprocessing.test_preprocess import job_of
from tests.raw_files import Run, json_lines, write_rows
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import receipt
from tinyllama_mcore.preprocessing import inputs, preprocess

WEB_SERVER = r"""
import http.server, io, re, sys, pathlib

class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def send_head(self):
        given = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = pathlib.Path(self.translate_path(self.path))
        if given is None and (path.is_dir() or not path.exists()):
            return super().send_head()
        content = path.read_bytes()
        told = len(content) + 1000 * ("lies" in path.name)
        first, last = (int(given[1]), min(int(given[2] or told), told - 1)) if given else (0, told - 1)
        part = content[first : last + 1]
        self.send_response(206 if given else 200)
        if given:
            self.send_header("Content-Range", f"bytes {first}-{last}/{told}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.send_header("Content-Length", str(told if self.command == "HEAD" else len(part)))
        self.end_headers()
        return io.BytesIO(part)

    def log_message(self, *words):
        with open(sys.argv[1], "a") as log:
            log.write(f"{self.command} {self.path}\n")

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""Serves a directory in parts, which http.server does not; of files called so it says that they are longer."""


def _raw(home: Path, texts: list[str]) -> tuple[str, ...]:
    """A tree of all formats, as patterns below it."""
    (home / "rows/deep").mkdir(parents=True)
    (home / "rows/.hidden").mkdir()
    (home / "other").mkdir()
    names = ("1.jsonl", "2.jsonl.gz", "3.jsonl.zst", "deep/4.parquet", "deep/5.arrow", ".hidden/x.jsonl", "README.md")
    for number, name in enumerate(names):
        write_rows(home / "rows" / name, [{"text": text} for text in texts[number::12]])
    for number, name in enumerate(("6.tar", "7.tar.zst", "8.json", "9.json.gz"), 7):
        write_rows(home / "other" / name, [{"text": text} for text in texts[number::12]])
    (home / "other/10.txt").write_text(texts[11])
    return "rows", "other/*.tar*", "other/8.json", "other/*.gz", "other/10.txt"


@contextlib.contextmanager
def _served(command: Sequence[str | Path], home: Path) -> Iterator[subprocess.Popen[str]]:
    server = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield server
    finally:
        server.kill()
        server.communicate()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path, Path]]:
    """URL of a server, the directory that it serves, and a file with its requests."""
    home, log = tmp_path / "served", tmp_path / "log"
    home.mkdir()
    with _served([sys.executable, "-c", WEB_SERVER, log], home) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}", home, log


def _same_as_local(url: str, home: Path, patterns: Sequence[str], preprocess_data: Run, tokenizer_model: Path) -> None:
    """Bytes and checksums are those of the same files on this machine, with one worker and three; names are URLs."""
    out = home.parent
    job = job_of(home, out / "local", tokenizer_model)
    job = replace(job, inputs=tuple(str(home / pattern) for pattern in patterns), append_eod=False)
    expected = preprocess.run(job)[0].receipt
    for workers in ("1", "3"):
        urls = [f"{url}/{pattern}" for pattern in patterns]
        done = preprocess_data("--input", *urls, "--output-prefix", out / workers, "--workers", workers)
        assert done.returncode == 0, done.stderr
        for suffix in (".bin", ".idx"):
            of = [(out / f"{name}_text_document{suffix}").read_bytes() for name in ("local", workers)]
            assert of[0] == of[1]
        slip = receipt.read(out / f"{workers}_text_document")
        assert slip is not None
        assert [(file.path.removeprefix(url), file.bytes, file.sha256) for file in slip.inputs] == [
            (file.path.removeprefix(str(home)), file.bytes, file.sha256) for file in expected.inputs
        ]
        assert f"skipped {url}/rows/.hidden/: its name begins with . or _" in done.stderr
        assert f"skipped {url}/rows/README.md: its name does not end in" in done.stderr


def test_a_web_server(
    web: tuple[str, Path, Path], texts: list[str], preprocess_data: Run, tokenizer_model: Path
) -> None:
    """Directories by their index pages, globs and files, of every format."""
    url, home, _ = web
    _same_as_local(url, home, _raw(home, texts), preprocess_data, tokenizer_model)


def test_an_s3_server(
    tmp_path: Path, texts: list[str], preprocess_data: Run, tokenizer_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same from a bucket, whose store is moto's, a process; with the environment that every S3 client reads."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    port = ranks.free_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-a-test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    home = tmp_path / "served"
    patterns = _raw(home, texts)
    with _served([sys.executable, "-m", "moto.server", "-p", str(port)], tmp_path):
        for _ in range(300):
            with contextlib.suppress(URLError):
                urllib.request.urlopen(os.environ["AWS_ENDPOINT_URL"] + "/moto-api/", timeout=5).close()
                break
            time.sleep(0.1)
        store = boto3.client("s3")
        store.create_bucket(Bucket="bucket")
        for path in sorted(home.rglob("*")):
            if path.is_file():
                store.upload_file(str(path), "bucket", f"prefix/{path.relative_to(home)}")
        _same_as_local("s3://bucket/prefix", home, patterns, preprocess_data, tokenizer_model)
        expected = {"s3://bucket/none": "no such file", "s3://none/d.jsonl": "cannot be listed: "}
        _refused(expected, tmp_path, tokenizer_model)


def test_a_resumed_job_reads_only_what_it_has_not_or_has_changed(
    web: tuple[str, Path, Path], tmp_path: Path, texts: list[str], preprocess_data: Run
) -> None:
    """By what the server says of a file; saved datasets and their splits are known behind URLs too."""
    url, home, log = web
    saved = home / "saved/train"
    saved.mkdir(parents=True)
    (home / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (home / "saved/test").mkdir()
    write_rows(home / "saved/test/data.arrow", [{"text": "never trained on"}])
    (saved / "dataset_info.json").write_text("{}")
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": f"{name}.arrow"} for name in "cab"]}))
    for name in "ca":
        write_rows(saved / f"{name}.arrow", [{"text": text} for text in texts[:5]])
    write_rows(saved / "b.arrow", [{"text": None}])
    flags = ("--input", f"{url}/saved", "--output-prefix", tmp_path / "out", "--resume", "--workers", "2")
    without = preprocess_data(*flags)
    assert without.returncode == 2 and f"{url}/saved: is a DatasetDict with the splits train, test;" in without.stderr
    failed = preprocess_data(*flags, "--dataset-split", "train")
    assert failed.returncode == 2, failed.stderr
    assert f'--input {url}/saved/train/b.arrow, row 1: "text" must be a string, not NoneType' in failed.stderr
    write_rows(saved / "b.arrow", [{"text": texts[5]}])
    size = (saved / "a.arrow").stat().st_size
    write_rows(saved / "a.arrow", [{"text": text} for text in reversed(texts[:5])])
    assert (saved / "a.arrow").stat().st_size == size
    os.utime(saved / "a.arrow", (0, 0))
    log.unlink()
    done = preprocess_data(*flags, "--dataset-split", "train")
    assert done.returncode == 0, done.stderr
    asked = {line.removeprefix("GET /saved/train/") for line in log.read_text().splitlines() if "GET" in line}
    assert {"a.arrow", "b.arrow"} <= asked and "c.arrow" not in asked
    slip = receipt.read(tmp_path / "out_text_document")
    assert slip is not None
    assert [file.path for file in slip.inputs] == [f"{url}/saved/train/{name}.arrow" for name in "cab"]
    assert slip.counts.documents == 5 + 5 + 1


REFUSALS = """
import json, sys
from tinyllama_mcore.commands.preprocess_data import main
for argv in json.load(sys.stdin):
    print("ended with", main(argv), file=sys.stderr)
"""
"""The tool, with one command line after another."""


def _refused(expected: Mapping[str, str], out: Path, tokenizer_model: Path) -> None:
    """Each --input ends with exit code 2 and this message."""
    flags = ["--output-prefix", f"{out}/refused", "--tokenizer-model", str(tokenizer_model), "--workers", "2"]
    argvs = json.dumps([["--append-eod", *flags, "--input", pattern] for pattern in expected])
    done = subprocess.run([sys.executable, "-c", REFUSALS], input=argvs, capture_output=True, text=True, timeout=60)
    told = [line for line in done.stderr.splitlines() if line.startswith(("preprocess_data: --input", "ended with"))]
    assert len(told) == 2 * len(expected) and "Traceback" not in done.stderr, done.stderr
    for (pattern, message), line, end in zip(expected.items(), told[::2], told[1::2], strict=True):
        assert line.startswith(f"preprocess_data: --input {pattern}: {message}") and end == "ended with 2", line
    assert not list(out.glob("refused*"))


def test_what_a_store_does_not_give_is_told(web: tuple[str, Path, Path], tmp_path: Path, tokenizer_model: Path) -> None:
    """One message, exit code 2: no such file, no server, no data in a directory, a file that ends early, no bytes."""
    url, home, _ = web
    (home / "lies.jsonl").write_bytes(json_lines(["a", "b"]))
    (home / "empty.tar").write_bytes(b"")
    (home / "pages").mkdir()
    (home / "pages/README.md").write_text("no data")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        expected = {
            f"{url}/none.jsonl": "cannot be listed: 404",
            f"{url}/pages": "no such file, and no match that ends in",
            f"{url}/lies.jsonl": "cannot be read (the store ended at byte 28 of 1028)",
            f"{url}/empty.tar": "has 0 bytes",
            f"http://127.0.0.1:{closed.getsockname()[1]}/d.jsonl": "cannot be listed: ",
        }
        _refused(expected, tmp_path, tokenizer_model)


def test_what_cannot_be_opened_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of a scheme, fsspec itself; a scheme that nobody knows; a password, which it does not repeat."""
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    for url, message in (
        ("s3://bucket/d.jsonl", "s3fs is not installed for .*: pip install s3fs, or install with the extra s3$"),
        ("gs://bucket/d.jsonl", "gcsfs is not installed for .*: pip install gcsfs$"),
        ("nobodys://bucket/d.jsonl", "fsspec knows no nobodys://"),
    ):
        with pytest.raises(ConfigError, match=f"--input {url}: {message}"):
            inputs.find([url])
    with pytest.raises(ConfigError, match="a password in a URL would stand in the receipt") as caught:
        inputs.find(["https://me:hush@host/d.jsonl"])
    assert "hush" not in str(caught.value)
    for more in ("d.jsonl?sig=hush", "d.jsonl?X-Amz-Signature=hush/x&X-Amz-Date=1", "d?.jsonl", "d.jsonl#hush"):
        with pytest.raises(
            ConfigError, match=r"--input https://host/d(\.jsonl)?[?#]\.\.\.: what follows [?#] is"
        ) as caught:
            inputs.find([f"https://host/{more}"])
        assert "hush" not in str(caught.value) and "curl -o FILE URL" in str(caught.value)
    with pytest.raises(ConfigError, match="a password in a URL") as caught:
        inputs.find(["https://hush@host/d.jsonl"])
    assert "hush" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.delitem(sys.modules, "fsspec.core", raising=False)
    with pytest.raises(ConfigError, match=r"pip install fsspec aiohttp, or install with the extra remote$"):
        inputs.find(["s3://bucket/d.jsonl"])


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    """So that a file is read once by both names."""
    write_rows(tmp_path / "d.jsonl", [{"text": "a"}])
    assert inputs.find([f"file://{tmp_path}/*.jsonl", str(tmp_path)]).files == (tmp_path / "d.jsonl",)
