"""The page of a run: what stands in it, what cannot be put into it, and that a real browser draws it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reporting.conftest import RESUMED
from tests.reporting.long_run import write
from tinyllama_mcore.reporting import page
from tinyllama_mcore.reporting.metrics_file import read

LONG = 100_000
SPIKE = 12_345
"""Iteration of the long run with one loss that is far from all others."""
STRAGGLER = {"rank": 3, "host": "a", "over_median": 0.25, "data_rank": 0, "data_host": "b", "data_wait_s": 0.5}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{data}}<!--<script>"


class Parsed(HTMLParser):
    """A page as a parser sees it: its elements, the text of each script, and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        """Text, or the inside of a script."""
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def figures(parsed: Parsed) -> dict[str, Any]:
    """What the script draws."""
    return json.loads(parsed.scripts[0])


@pytest.fixture(scope="session")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a run of 100,000 iterations."""
    path = tmp_path_factory.mktemp("long") / "metrics.jsonl"
    write(path, LONG, spike=SPIKE)
    begin = time.perf_counter()
    text = page.render([read(path)])
    assert time.perf_counter() - begin < 20, "a few seconds on an idle machine"
    return text


def test_what_a_real_run_did_is_there(real_run: Path, corpus: list[str]) -> None:
    """Events with their figures, the restart's changes, environment, wall time, every chart with values."""
    parsed = Parsed(page.render([read(real_run)]))
    for text in (
        "1 start, 1 restart in another layout, 1 skipped update",
        "told to",
        "2 iterations were lost",
        "layout.tensor_model_parallel_size",
        "megatron-core",
        "iterations that count",
        "goodput",
    ):
        assert text in parsed.text, text
    found = figures(parsed)
    assert [chart["id"] for chart in found["charts"]] == [
        *("lm_loss", "lr", "grad_norm", "tokens_per_s_per_gpu", "peak_memory_gib", "data_wait_s")
    ]
    (run,) = found["runs"]
    assert {mark["kind"]: mark["x"]["iteration"] for mark in run["marks"]} == {
        "layout": [RESUMED],
        "skip": [3],
        "save": [2, 4, 6, 8, 10, 12],
    }
    assert run["series"]["lm_loss"]["mean"] == pytest.approx(read(real_run).columns["lm_loss"], rel=1e-4)
    assert [entry["name"] for entry in run["blend"]] == [Path(corpus[1]).name, Path(corpus[3]).name]
    shares = np.array([entry["share"] for entry in run["blend"]])
    assert shares.sum(axis=0) == pytest.approx(np.ones(len(run["first"])))
    assert [entry["name"] for entry in run["validation"]["datasets"]] == ["text", "code"]


def test_what_flags_ask_for(tmp_path: Path) -> None:
    """How often each rank was slowest, and the norms of each group; a run without them has neither table."""
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"straggler": STRAGGLER, "grad_norm_by_group": {"embedding": 3.0, "head": 1.0}},
        {"straggler": STRAGGLER | {"over_median": 0.75}, "grad_norm_by_group": {"embedding": 2.0, "head": math.nan}},
        {"straggler": STRAGGLER | {"rank": 0, "host": "b"}, "grad_norm_by_group": {"embedding": 1.0, "head": 4.0}},
        {},
    ]
    needed = [{"iteration": n, "consumed_tokens": 8 * n, "lm_loss": 2.0} for n in (10, 20, 30, 40)]
    path.write_text("".join(json.dumps(base | row) + "\n" for base, row in zip(needed, rows, strict=True)))
    text = Parsed(page.render([read(path)])).text
    assert "0 (b)1 of 325.0%25.0%3 of 3500.00 ms" in text
    assert "3 (a)2 of 350.0%75.0%0 of 3-" in text
    assert "at iteration 30" in text
    assert "embedding123" + "10" in text and "head42.5430" in text
    path.write_text(json.dumps(needed[0]) + "\n")
    assert not re.search("Slowest ranks|norm by group", page.render([read(path)]))


def test_runs_beside_each_other(real_run: Path, tmp_path: Path) -> None:
    """Each has its name; what differs in their configuration is told; a run of an earlier version has no wall time."""
    other, old = tmp_path / "other.jsonl", tmp_path / "old.jsonl"
    other.write_text(real_run.read_text().replace('"seed": 1234', '"seed": 4321'))
    old.write_text('{"iteration": 1, "consumed_tokens": 8, "lm_loss": 2.5}\n{"iteration": 2, "con')
    parsed = Parsed(page.render([read(path) for path in (real_run, other)]))
    assert "seed1,2344,321" in parsed.text
    parsed = Parsed(page.render([read(path) for path in (real_run, old)]))
    assert "old.jsonl: line 2 is cut short and is left out" in parsed.text
    assert "Not every file has its configuration" in parsed.text
    assert [run["name"] for run in figures(parsed)["runs"]] == ["metrics.jsonl", "old.jsonl"]


def test_a_spike_is_still_seen(long_page: str) -> None:
    """100,000 iterations in less than 2 MB; the one loss of 50 nats is the largest of its stretch, and this is told."""
    assert len(long_page.encode()) < 2_000_000
    parsed = Parsed(long_page)
    (run,) = figures(parsed)["runs"]
    losses = run["series"]["lm_loss"]
    place = int(np.argmax(losses["largest"]))
    assert losses["largest"][place] == 50.0
    assert run["first"][place] <= SPIKE <= run["x"]["iteration"][place]
    assert len(losses["mean"]) <= 1200
    assert "stands for up to 84 iterations" in parsed.text


def test_nothing_can_be_put_into_it(real_run: Path, tmp_path: Path) -> None:
    """Names and words that are markup stay words: no element, no script and no attribute comes of them."""
    home = tmp_path / "<b onclick=alert(3)>"
    home.mkdir()
    lines = []
    for line in map(json.loads, real_run.read_text().splitlines()):
        line["skip_reason"] = HOSTILE if line.get("skipped") else None
        for name in ("consumed_by_dataset", "by_dataset"):
            line[name] = {f"{HOSTILE}{key}": value for key, value in line.get(name, {}).items()}
        if "event" not in line:
            line["straggler"] = STRAGGLER | {"host": HOSTILE}
            line["grad_norm_by_group"] = {HOSTILE: 1.0}
        if line.get("event") == "start":
            line |= {"resumed_from": HOSTILE, "environment": {HOSTILE: HOSTILE}}
            line["config"] = {**line["config"], HOSTILE: HOSTILE, "recipe": f"{HOSTILE}{line['iteration']}"}
        lines.append(json.dumps(line) + "\n")
    (home / f"{HOSTILE.replace('/', '')}.jsonl").write_text("".join(lines))
    plain = Parsed(page.render([read(real_run)]))
    parsed = Parsed(page.render([read(next(home.iterdir()))]))
    assert {tag for tag, _ in parsed.tags} == {tag for tag, _ in plain.tags}
    assert len(parsed.scripts) == len(plain.scripts) == 2 and parsed.scripts[1] == plain.scripts[1]
    assert {name for _, names in parsed.tags for name in names} == {name for _, names in plain.tags for name in names}
    assert HOSTILE in parsed.text
    assert "<!--" in json.dumps(figures(parsed)) and "<" not in parsed.scripts[0]
    policy = next(names["content"] for tag, names in parsed.tags if "http-equiv" in names)
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_nothing_is_fetched(long_page: str) -> None:
    """No address, but that of the SVG namespace."""
    assert set(re.findall(r"https?://[^\s\"']+", long_page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src|@import)=", long_page)


PROBE = """<!DOCTYPE html><body>
<iframe id="f" src="{page}" style="width:{width}px;height:900px"></iframe><pre id="o"></pre>
<script>setTimeout(() => {{
  const d = document.getElementById("f").contentDocument, w = document.getElementById("f").contentWindow;
  const charts = [...d.querySelectorAll("#charts figure")];
  const isDrawn = (path) => path.getAttribute("d").length > 9;
  const empty = charts.filter((c) => ![...c.querySelectorAll("svg.chart path")].some(isDrawn));
  const cut = charts.flatMap((c) => {{
    const svg = c.querySelector("svg.chart"), b = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map((t) => t.getBoundingClientRect());
    return texts.filter((a) => a.left < b.left - 1 || a.right > b.right + 1);
  }});
  const overlaps = charts.flatMap((c) => {{
    const texts = [...c.querySelectorAll("svg.chart text")].map((t) => t.getBoundingClientRect());
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2;
    return texts.filter((a, i) => texts.some((b, j) => j > i && meet(a, b)));
  }});
  const svg = d.querySelector("svg.chart");
  const before = d.querySelector(".read").textContent;
  svg.dispatchEvent(new w.KeyboardEvent("keydown", {{key: "Home"}}));
  const after = d.querySelector(".read").textContent;
  d.querySelector("input[value=hours]").click();
  d.getElementById("log").click();
  const bad = d.documentElement.outerHTML.includes("NaN");
  document.getElementById("o").textContent = "FOUND" + JSON.stringify({{charts: charts.length, empty: empty.length,
    cut: cut.length, overlaps: overlaps.length, wide: d.documentElement.scrollWidth, before, after, bad}}) + "END";
}}, 500);</script></body>"""


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("which", ["long", "real"])
def test_a_browser_draws_it(width: int, which: str, long_page: str, real_run: Path, tmp_path: Path) -> None:
    """Every chart has its lines, no label is cut off or on another, nothing scrolls sideways, keys read values."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed: the page is not drawn here")
    made, probe = tmp_path / "page.html", tmp_path / "probe.html"
    made.write_text(long_page if which == "long" else page.render([read(real_run)]), encoding="utf-8")
    probe.write_text(PROBE.format(page=made.name, width=width))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--window-size=1500,1000"]
    done = subprocess.run([chromium, *flags, "--dump-dom", f"file://{probe}"], capture_output=True, timeout=120)
    told = done.stderr.decode(errors="replace")
    assert "CONSOLE" not in told, told[-2000:]
    match = re.search("FOUND(.*)END</pre>", done.stdout.decode())
    assert match, done.stdout[-2000:]
    found = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["charts"] == 8
    assert (found["empty"], found["cut"], found["overlaps"], found["bad"]) == (0, 0, 0, False)
    assert found["wide"] <= width
    assert found["before"] != found["after"] and "iteration 1" in found["after"]
