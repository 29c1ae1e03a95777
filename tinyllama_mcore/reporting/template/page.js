"use strict";
// Draws the charts of the page from the JSON beside it. Texts of the JSON only ever become text nodes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const HEIGHT = 230, LEFT = 54, RIGHT = 14, TOP = 12, BOTTOM = 26, COLORS = 8;
  const AXES = { iteration: "iteration", tokens: "tokens", hours: "hours" };
  const state = { axis: "iteration", log: false, at: null };
  const several = data.runs.length > 1;

  function make(parent, name, attributes, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function html(parent, name, className, text) {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  // Numbers as people read them.
  function short(value) {
    if (value === null || value === undefined || !isFinite(value)) return "–";
    const size = Math.abs(value);
    for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
      if (size >= unit) return trimmed(value / (name === "k" ? 1e3 : unit)) + name;
    }
    if (size !== 0 && size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
    return trimmed(value);
  }
  const trimmed = (value) => String(Number(value.toPrecision(4)));
  const whole = (value) => Math.round(value).toLocaleString("en");

  function ticks(low, high, count) {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * ([1, 2, 5, 10].find((n) => n * power >= raw) || 10);
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
    return found;
  }

  function logTicks(low, high) {
    const decades = Math.log10(high / low), found = [];
    const parts = decades > 3 ? [1] : decades > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const n of parts) if (n * 10 ** power >= low && n * 10 ** power <= high) found.push(n * 10 ** power);
    }
    return found.filter((_, place) => place % Math.ceil(found.length / 8) === 0);
  }

  // One chart: lines, bands and areas over a run's places, and what is read at one of them.
  function columnChart(chart) {
    const parts = [];
    data.runs.forEach((run, r) => {
      const series = run.series[chart.id], color = r % COLORS;
      if (!series) return;
      const band = series.least && { x: run.x, low: series.least, high: series.largest, fill: `f${color} c${color}` };
      const line = { x: run.x, y: series.mean, stroke: `line c${color}${series.smooth ? " faint" : " bold"}` };
      const lines = [line];
      if (series.smooth) lines.push({ x: run.x, y: series.smooth, stroke: `line bold c${color}` });
      const dots = chart.id === "lm_loss" && run.validation
        ? { x: run.validation.x, y: run.validation.loss, color: several ? color : 1 } : null;
      parts.push({ run, lines, bands: band ? [band] : [], dots, read: (i) => readColumn(chart, series, i) });
    });
    return { ...chart, parts };
  }

  function readColumn(chart, series, i) {
    const words = [short(series.mean[i])];
    if (series.least) words.push(`(${short(series.least[i])} to ${short(series.largest[i])})`);
    if (chart.unit) words.push(chart.unit);
    const smooth = series.smooth ? `, smoothed ${short(series.smooth[i])}` : "";
    return words.join(" ") + smooth;
  }

  function validationChart(run) {
    const lines = run.validation.datasets.map((set, n) =>
      ({ x: run.validation.x, y: set.loss, stroke: `line bold c${n % COLORS}` }));
    const keys = run.validation.datasets.map((set, n) => ({ color: n % COLORS, text: set.name }));
    const read = (i, x) => {
      const at = nearest(run.validation.x[state.axis], x);
      return `at ${whole(run.validation.x.iteration[at])}: ` +
        run.validation.datasets.map((set) => `${set.name} ${short(set.loss[at])}`).join(", ");
    };
    const title = "Validation loss by dataset" + (several ? `: ${run.name}` : "");
    return { id: "validation", title, unit: "nats a token", log: true, keys, parts: [{ run, lines, bands: [], read }] };
  }

  function blendChart(run) {
    let below = run.x.iteration.map(() => 0);
    const bands = run.blend.map((set, n) => {
      const low = below;
      below = below.map((value, i) => value + (set.share[i] || 0));
      return { x: run.x, low, high: below, fill: `f${n % COLORS}`, area: true };
    });
    const keys = run.blend.map((set, n) => ({ color: n % COLORS, text: set.name }));
    const read = (i) => run.blend.map((set) => `${set.name} ${(100 * (set.share[i] || 0)).toFixed(1)} %`).join(", ");
    const title = "Share of samples by dataset" + (several ? `: ${run.name}` : "");
    return { id: "blend", title, unit: "", fixed: [0, 1], keys, parts: [{ run, lines: [], bands, read }] };
  }

  const charts = data.charts.map(columnChart);
  charts.splice(1, 0, ...data.runs.filter((run) => run.validation && run.validation.datasets.length > 1).map(validationChart));
  charts.push(...data.runs.filter((run) => run.blend.length > 1).map(blendChart));

  function nearest(places, x) {
    let low = 0, high = places.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (places[middle] === null || places[middle] <= x) low = middle; else high = middle;
    }
    return Math.abs(places[low] - x) <= Math.abs(places[high] - x) ? low : high;
  }

  const runsOf = (chart) => chart.parts.map((part) => part.run);

  function horizontal(chart) {
    let low = Infinity, high = -Infinity;
    for (const run of runsOf(chart)) {
      const places = run.x[state.axis];
      low = Math.min(low, places[0]);
      high = Math.max(high, places[places.length - 1]);
    }
    return low < high ? [low, high] : [low - 0.5, high + 0.5];
  }

  function vertical(chart) {
    if (chart.fixed) return chart.fixed;
    let low = Infinity, high = -Infinity;
    const see = (values) => {
      for (const value of values) {
        if (value === null || (isLog(chart) && value <= 0)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    };
    for (const part of chart.parts) {
      part.lines.forEach((line) => see(line.y));
      part.bands.forEach((band) => { see(band.low); see(band.high); });
      if (part.dots) see(part.dots.y);
    }
    if (low > high) return [0, 1];
    if (isLog(chart)) return low < high ? [low / 1.02, high * 1.02] : [low / 2, high * 2];
    const room = (high - low || Math.abs(high) || 1) * 0.04;
    return [low >= 0 && low < room * 8 ? 0 : low - room, high + room];
  }
  const isLog = (chart) => state.log && chart.log;

  function scales(chart, width) {
    const [x0, x1] = horizontal(chart), [y0, y1] = vertical(chart), log = isLog(chart);
    const to = log ? Math.log : (value) => value;
    return {
      x: (value) => LEFT + (value - x0) / (x1 - x0) * (width - LEFT - RIGHT),
      y: (value) => HEIGHT - BOTTOM - (to(value) - to(y0)) / (to(y1) - to(y0)) * (HEIGHT - TOP - BOTTOM),
      back: (pixel) => x0 + (pixel - LEFT) / (width - LEFT - RIGHT) * (x1 - x0),
      xTicks: ticks(x0, x1, Math.max(2, Math.floor(width / 110))),
      yTicks: log ? logTicks(y0, y1) : ticks(y0, y1, 5),
      log,
    };
  }

  function linePath(scale, xs, ys) {
    let path = "", pen = "M";
    ys.forEach((y, i) => {
      if (y === null || xs[i] === null || (scale.log && y <= 0)) { pen = "M"; return; }
      path += `${pen}${scale.x(xs[i]).toFixed(1)} ${scale.y(y).toFixed(1)}`;
      pen = "L";
    });
    return path;
  }

  function bandPath(scale, band, xs) {
    const there = [], back = [];
    band.high.forEach((high, i) => {
      const low = band.low[i];
      if (high === null || low === null || (scale.log && low <= 0)) return;
      there.push(`${scale.x(xs[i]).toFixed(1)} ${scale.y(high).toFixed(1)}`);
      back.push(`${scale.x(xs[i]).toFixed(1)} ${scale.y(low).toFixed(1)}`);
    });
    return there.length ? `M${there.join("L")}L${back.reverse().join("L")}Z` : "";
  }

  function drawAxes(svg, scale, width) {
    for (const y of scale.yTicks) {
      make(svg, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: scale.y(y), y2: scale.y(y) });
      make(svg, "text", { x: LEFT - 6, y: scale.y(y) + 4, "text-anchor": "end" }, short(y));
    }
    for (const x of scale.xTicks) {
      const at = scale.x(x), anchor = at > width - 40 ? "end" : at < LEFT + 12 ? "start" : "middle";
      make(svg, "line", { class: "grid", x1: at, x2: at, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 });
      make(svg, "text", { x: at, y: HEIGHT - 8, "text-anchor": anchor }, short(x));
    }
  }

  const REACH = { // kind -> where its mark begins and ends: long ones are rare
    skip: [TOP, TOP + 9], save: [HEIGHT - BOTTOM - 7, HEIGHT - BOTTOM],
    restart: [TOP, HEIGHT - BOTTOM], layout: [TOP, HEIGHT - BOTTOM], blend: [TOP, HEIGHT - BOTTOM], rollback: [TOP, HEIGHT - BOTTOM],
  };
  const DASHES = { restart: "6 3", layout: "2 2", blend: "1 4", rollback: "8 2 2 2" };

  function drawMarks(svg, scale, chart) {
    for (const run of runsOf(chart)) {
      for (const mark of run.marks) {
        const [y0, y1] = REACH[mark.kind];
        const path = mark.x[state.axis].map((x) => `M${scale.x(x).toFixed(1)} ${y0}V${y1}`).join("");
        make(svg, "path", { class: `mark ${mark.kind}`, d: path, "stroke-dasharray": DASHES[mark.kind] || "none" });
      }
    }
  }

  function draw(chart) {
    const width = Math.max(chart.svg.clientWidth, 200), scale = chart.scale = scales(chart, width);
    const svg = chart.svg;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute("height", HEIGHT);
    drawAxes(svg, scale, width);
    for (const part of chart.parts) {
      for (const band of part.bands) {
        make(svg, "path", { class: `${band.area ? "area" : "band"} ${band.fill}`, d: bandPath(scale, band, band.x[state.axis]) });
      }
    }
    drawMarks(svg, scale, chart);
    for (const part of chart.parts) {
      for (const line of part.lines) make(svg, "path", { class: line.stroke, d: linePath(scale, line.x[state.axis], line.y) });
      if (part.dots) drawDots(svg, scale, part.dots);
    }
    chart.cursor = make(svg, "line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    read(chart);
  }

  function drawDots(svg, scale, dots) {
    const xs = dots.x[state.axis];
    make(svg, "path", { class: `dashed c${dots.color}`, d: linePath(scale, xs, dots.y) });
    if (xs.length > 60) return;
    dots.y.forEach((y, i) => {
      if (y !== null && !(scale.log && y <= 0)) make(svg, "circle", { class: `f${dots.color}`, cx: scale.x(xs[i]), cy: scale.y(y), r: 2.5 });
    });
  }

  // What stands at the cursor, or at the end of each run.
  function read(chart) {
    chart.parts.forEach((part, p) => {
      const places = part.run.x[state.axis];
      const i = state.at === null ? places.length - 1 : nearest(places, state.at);
      const first = part.run.first[i], last = part.run.x.iteration[i];
      const name = several ? `${part.run.name}, ` : "";
      const at = first === last ? whole(last) : `${whole(first)} to ${whole(last)}`;
      const text = `${name}iteration ${at}: ${part.read(i, places[i])}`;
      const dots = part.dots ? part.dots.y[nearest(part.dots.x[state.axis], places[i])] : null;
      chart.lines[p].textContent = dots === null ? text : `${text}, validation ${short(dots)}`;
      if (state.at !== null && p === 0) {
        chart.cursor.setAttribute("x1", chart.scale.x(places[i]));
        chart.cursor.setAttribute("x2", chart.scale.x(places[i]));
      }
    });
    chart.cursor.setAttribute("visibility", state.at === null ? "hidden" : "visible");
  }

  function moveTo(x) {
    state.at = x;
    charts.forEach(read);
  }

  function pressed(event, chart) {
    const places = chart.parts[0].run.x[state.axis], last = places.length - 1;
    const i = state.at === null ? last : nearest(places, state.at), by = event.shiftKey ? 10 : 1;
    const to = { ArrowLeft: i - by, ArrowRight: i + by, Home: 0, End: last }[event.key];
    if (event.key === "Escape") moveTo(null);
    else if (to === undefined) return;
    else moveTo(places[Math.min(Math.max(to, 0), last)]);
    event.preventDefault();
  }

  function keyList(parent, keys) {
    const list = html(parent, "ul", "keys");
    for (const key of keys) addKey(list, key.text, "rect", { class: `f${key.color}`, width: 22, height: 12 });
  }

  function addKey(list, text, shape, attributes) {
    const item = html(list, "li");
    make(make(item, "svg", { class: "key", "aria-hidden": "true", viewBox: "0 0 22 12" }), shape, attributes);
    html(item, "span", "", text);
  }

  function build(chart) {
    const figure = html(document.getElementById("charts"), "figure");
    const caption = html(figure, "figcaption", "", chart.title);
    if (chart.unit) html(caption, "span", "unit", ` in ${chart.unit}`);
    const box = html(figure, "div", "read");
    box.setAttribute("aria-live", "polite");
    chart.lines = chart.parts.map(() => html(box, "div"));
    chart.svg = make(figure, "svg", { class: "chart", tabindex: 0, role: "img", "aria-label": `${chart.title} over the run` });
    if (chart.keys) keyList(figure, chart.keys);
    chart.svg.addEventListener("pointermove", (event) => moveTo(chart.scale.back(event.offsetX)));
    chart.svg.addEventListener("pointerleave", () => moveTo(null));
    chart.svg.addEventListener("keydown", (event) => pressed(event, chart));
  }

  function buildKeys() {
    const list = document.getElementById("keys");
    if (several) {
      data.runs.forEach((run, r) => addKey(list, run.name, "rect", { class: `f${r % COLORS}`, width: 22, height: 12 }));
    }
    if (data.runs.some((run) => run.validation)) {
      addKey(list, "validation loss", "path", { class: `dashed c${several ? 7 : 1}`, d: "M0 6H22" });
    }
    for (const kind of Object.keys(data.kinds)) {
      if (!data.runs.some((run) => run.marks.some((mark) => mark.kind === kind))) continue;
      const [y0, y1] = kind === "skip" ? [0, 7] : kind === "save" ? [5, 12] : [0, 12];
      addKey(list, data.kinds[kind], "path", { class: `mark ${kind}`, d: `M11 ${y0}V${y1}`, "stroke-dasharray": DASHES[kind] || "none" });
    }
  }

  charts.forEach(build);
  buildKeys();
  const drawAll = () => charts.forEach(draw);
  for (const radio of document.getElementsByName("axis")) {
    radio.addEventListener("change", () => { state.axis = radio.value in AXES ? radio.value : "iteration"; state.at = null; drawAll(); });
  }
  document.getElementById("log").addEventListener("change", (event) => { state.log = event.target.checked; drawAll(); });
  new ResizeObserver(drawAll).observe(document.getElementById("charts"));
  drawAll();
})();
