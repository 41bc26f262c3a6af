// Who serves what over time: shares, work in flight and latency, with what failed and came back.

const LEFT = 46;
const RIGHT = 22;
const TOP = 18;
const GAP = 26;
const PANELS = { share: 132, flight: 62, latency: 78 };
const AXIS = 20;
const MOST_BARS = 180;
const SERIES = 8;
const WINDOWS = [["120", "2 min"], ["300", "5 min"], ["900", "15 min"]];
const INTERVALS = [["1", "1 s"], ["5", "5 s"], ["15", "15 s"]];
const BACK_S = 900;

/** A bound of an axis that is easy to read: 1, 2 or 5 times a power of ten. */
function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/** Samples of one bar as one: sums of what ended, the largest of what was under way, the newest percentiles. */
function barsOf(samples, from, to, width) {
  const bars = new Map();
  for (const sample of samples) {
    if (sample.at <= from || sample.at > to) continue;
    const start = Math.floor(sample.at / width) * width;
    let bar = bars.get(start);
    if (!bar) bars.set(start, (bar = { start, ok: {}, failed: {}, all: 0, flight: 0, waiting: 0, p50: null, p95: null }));
    for (const [id, [ok, failed]] of Object.entries(sample.backends)) {
      bar.ok[id] = (bar.ok[id] ?? 0) + ok;
      bar.failed[id] = (bar.failed[id] ?? 0) + failed;
      bar.all += ok;
    }
    bar.flight = Math.max(bar.flight, sample.in_flight);
    bar.waiting = Math.max(bar.waiting, sample.waiting);
    bar.p50 = sample.p50_ms ?? bar.p50;
    bar.p95 = sample.p95_ms ?? bar.p95;
  }
  return [...bars.values()];
}

/** Where a backend went out of service and where it came back: `{at, id, down, reason}`. */
function marksOf(transitions) {
  const out = new Set();
  const marks = [];
  for (const { backend_id: id, was, status, routable, reason, at } of transitions) {
    const down = !routable || status === "unhealthy" || status === "offline";
    if (down === out.has(id)) continue;
    if (down) out.add(id);
    else out.delete(id);
    // One that has just been registered does not fail; it is not there yet.
    if (!(down && was === "unknown" && status !== "unhealthy")) marks.push({ at, id, down, reason });
  }
  return marks;
}

function render({ model, el }) {
  const service = serviceOf(model, paint, { history: true });
  const pill = makePill({ role: "status", "aria-live": "polite", "data-testid": "uia-balance-connection" });
  const notice = makeNotice({ "data-testid": "uia-balance-notice" });
  const [strategyLabel, strategy] = makeSelect("Strategy", [model.get("report").strategy ?? ""], {
    "data-testid": "uia-balance-strategy",
  });
  const [windowLabel, windowChoice] = makeSelect("Window", WINDOWS, { "data-testid": "uia-balance-window" });
  const [everyLabel, every] = makeSelect("Every", INTERVALS, { "data-testid": "uia-balance-interval" });
  const pause = makeButton("Pause", { "aria-pressed": "false", "data-testid": "uia-balance-pause" });
  const back = make("input", {
    type: "range", min: "0", max: String(BACK_S), step: "5", value: "0", class: "uia-range",
    "data-testid": "uia-balance-back",
  });
  const ago = make("output", { class: "uia-ago" }, "now");
  const svg = makeSvg("svg", { class: "uia-chart", role: "img", "data-testid": "uia-balance-chart" });
  const readout = make("p", { class: "uia-readout", "data-testid": "uia-balance-readout" });
  const event = make("p", { class: "uia-readout", "data-testid": "uia-balance-event" });
  const body = make("tbody");
  const heads = [["Backend", ""], ["Share", "uia-num"], ["Served", "uia-num"], ["Failed", "uia-num"],
    ["In flight", "uia-num"], ["Latency", "uia-num"]];
  const legend = make(
    "table",
    { class: "uia-table uia-fixed uia-legend", "data-testid": "uia-balance-legend" },
    make("caption", { class: "uia-hidden" }, "Backends in the window shown"),
    make("thead", {}, make("tr", {}, ...heads.map(([text, kind]) => make("th", { scope: "col", class: kind }, text)))),
    body,
  );
  const root = make("section", { class: "uia uia-balance", "data-testid": "uia-balance", "aria-label": "Balance" });
  root.append(
    make("div", { class: "uia-bar" }, make("strong", { class: "uia-title" }, "Balance"), strategyLabel,
      make("span", { class: "uia-space" }), pill),
    make("div", { class: "uia-tools" }, windowLabel, everyLabel, pause,
      make("div", { class: "uia-back" },
        make("label", { class: "uia-label" }, make("span", { class: "uia-key" }, "Look back"), back), ago)),
    make("div", { class: "uia-stage" }, svg),
    readout,
    event,
    legend,
    notice,
  );
  el.append(root);

  const letters = new Map();
  let frozen = null;
  let hover = null;
  let painted = 0;
  windowChoice.value = model.get("window");

  const trace = () => service.trace;
  const now = () => trace().samples.at(-1)?.at ?? Date.now() / 1000;
  const step = () => Math.max(Number(every.value), Number(windowChoice.value) / MOST_BARS);
  const end = () => (frozen ?? now()) - Number(back.value);

  // A backend keeps its letter and colour while the widget is there.
  function seriesOf(id) {
    if (!letters.has(id)) letters.set(id, letters.size);
    const index = letters.get(id);
    return { letter: String.fromCharCode(65 + (index % 26)), colour: `var(--uia-s${index % SERIES})` };
  }

  function drawPanels(bars, marks, from, to) {
    const width = Math.max(320, Math.floor(svg.parentElement.clientWidth));
    const plot = width - LEFT - RIGHT;
    const x = (at) => LEFT + ((at - from) / (to - from)) * plot;
    const ids = [...letters.keys()];
    const parts = [];
    let top = TOP;

    function frame(name, height, bound, unit) {
      const text = (value, y, anchor = "end", at = LEFT - 6) =>
        makeSvg("text", { x: at, y, class: "uia-tick", "text-anchor": anchor }, value);
      const y = (value) => top + height - (value / bound) * height;
      parts.push(makeSvg("text", { x: LEFT, y: top - 6, class: "uia-axis-name" }, name));
      for (const share of [0, 0.5, 1]) {
        const at = top + height * (1 - share);
        parts.push(makeSvg("line", { x1: LEFT, x2: LEFT + plot, y1: at, y2: at, class: share ? "uia-grid" : "uia-base" }));
        const value = bound * share;
        if (share !== 0.5 || Number.isInteger(value)) parts.push(text(unit(value), at + 4));
      }
      return y;
    }

    const wide = step();
    const thick = (wide / (to - from)) * plot;
    const slit = thick > 4 ? 1 : 0;
    const right = LEFT + plot;
    const clip = (value) => Math.min(right, Math.max(LEFT, value));

    // Shares: one path a backend, a rectangle a bar, nothing where nothing was served.
    const ys = frame("Share of what was served", PANELS.share, 100, (value) => `${value}%`);
    const paths = new Map(ids.map((id) => [id, ""]));
    let lastBands = [];
    for (const bar of bars) {
      if (!bar.all) continue;
      let below = 0;
      lastBands = [];
      for (const id of ids) {
        const part = ((bar.ok[id] ?? 0) / bar.all) * 100;
        if (!part) continue;
        const [x0, x1] = [clip(x(bar.start)), clip(x(bar.start + wide) - slit)];
        const [y0, y1] = [ys(below), ys(below + part)];
        paths.set(id, `${paths.get(id)}M${x0.toFixed(1)} ${y0.toFixed(1)}H${x1.toFixed(1)}V${y1.toFixed(1)}H${x0.toFixed(1)}Z`);
        lastBands.push([id, (y0 + y1) / 2, y0 - y1]);
        below += part;
      }
    }
    for (const [id, path] of paths) {
      if (path) parts.push(makeSvg("path", { d: path, class: "uia-band", style: `fill:${seriesOf(id).colour}` }));
    }
    for (const [id, y, height] of lastBands) {
      if (height < 11) continue;
      const { letter } = seriesOf(id);
      parts.push(makeSvg("text", { x: right + 7, y: y + 4, class: "uia-letter" }, letter));
    }
    top += PANELS.share + GAP;

    const level = (value, y, kind) => {
      let path = "";
      let before = false;
      for (const bar of bars) {
        const known = value(bar);
        if (known === null) before = false;
        else {
          const [x0, x1, at] = [clip(x(bar.start)), clip(x(bar.start + wide)), y(known)];
          path += `${before ? "L" : "M"}${x0.toFixed(1)} ${at.toFixed(1)}H${x1.toFixed(1)}`;
          before = true;
        }
      }
      if (path) parts.push(makeSvg("path", { d: path, class: `uia-line ${kind}` }));
    };
    const key = (items) => {
      items.forEach(([name, kind], index) => {
        const at = right - 78 * (items.length - index) + 10;
        parts.push(makeSvg("line", { x1: at, x2: at + 18, y1: top - 10, y2: top - 10, class: `uia-line ${kind}` }));
        parts.push(makeSvg("text", { x: at + 23, y: top - 6, class: "uia-tick" }, name));
      });
    };

    const most = niceTop(Math.max(2, ...bars.map((bar) => Math.max(bar.flight, bar.waiting))));
    const yf = frame("Requests", PANELS.flight, most, (value) => String(value));
    key([["in flight", "uia-line-a"], ["queue", "uia-line-b"]]);
    level((bar) => bar.flight, yf, "uia-line-a");
    level((bar) => bar.waiting, yf, "uia-line-b");
    top += PANELS.flight + GAP;

    const slowest = niceTop(Math.max(1, ...bars.map((bar) => bar.p95 ?? 0)));
    const yl = frame("Latency, last 10 s", PANELS.latency, slowest, (value) =>
      slowest >= 2000 ? `${value / 1000} s` : `${value} ms`);
    key([["p50", "uia-line-a"], ["p95", "uia-line-b"]]);
    level((bar) => bar.p50, yl, "uia-line-a");
    level((bar) => bar.p95, yl, "uia-line-b");
    const bottom = top + PANELS.latency;

    for (const mark of marks) {
      const at = x(mark.at);
      if (at < LEFT || at > right) continue;
      const kind = mark.down ? "uia-mark-down" : "uia-mark-up";
      const sign = mark.down ? `M${at - 5} 2h10l-5 9z` : `M${at - 5} 11h10l-5 -9z`;
      const word = mark.down ? "out of service" : "back";
      parts.push(makeSvg("g", { class: `uia-mark ${kind}` },
        makeSvg("title", {}, `${timeOfDay(mark.at)} ${mark.id} ${word}: ${mark.reason}`),
        makeSvg("line", { x1: at, x2: at, y1: 11, y2: bottom }), makeSvg("path", { d: sign })));
    }

    const ticks = plot > 560 ? 4 : 2;
    for (let index = 0; index <= ticks; index += 1) {
      const at = from + ((to - from) * index) / ticks;
      const anchor = index === 0 ? "start" : index === ticks ? "end" : "middle";
      parts.push(makeSvg("text", { x: x(at), y: bottom + 15, class: "uia-tick", "text-anchor": anchor }, timeOfDay(at)));
    }
    if (hover !== null && hover >= LEFT && hover <= right) {
      parts.push(makeSvg("line", { x1: hover, x2: hover, y1: TOP, y2: bottom, class: "uia-cross" }));
    }
    put(svg, "viewBox", `0 0 ${width} ${bottom + AXIS}`);
    put(svg, "width", width);
    put(svg, "height", bottom + AXIS);
    svg.replaceChildren(...parts);
    return (at) => from + ((at - LEFT) / plot) * (to - from);
  }

  function said(bar) {
    const shares = [...letters.keys()].filter((id) => bar.ok[id]).map(
      (id) => `${seriesOf(id).letter} ${Math.round((100 * bar.ok[id]) / bar.all)}%`);
    const times = [["p50", bar.p50], ["p95", bar.p95]].filter(([, ms]) => ms !== null)
      .map(([name, ms]) => `${name} ${duration(ms).join(" ")}`);
    return [timeOfDay(bar.start), shares.join(", ") || "nothing served", `${bar.flight} in flight`,
      `${bar.waiting} in the queue`, ...times].join(" · ");
  }

  function drawLegend(bars) {
    const report = service.report ?? {};
    const known = new Map((report.backends ?? []).map((backend) => [backend.id, backend]));
    const all = bars.reduce((sum, bar) => sum + bar.all, 0);
    while (body.children.length > letters.size) body.lastChild.remove();
    [...letters.keys()].forEach((id, index) => {
      let row = body.children[index];
      if (!row) {
        row = make("tr", { "data-testid": "uia-balance-row" }, make("th", { scope: "row" },
          make("span", { class: "uia-label-row" }, make("span", { class: "uia-swatch" }), make("span", { class: "uia-name uia-cut" }))));
        for (let cell = 1; cell < heads.length; cell += 1) row.append(make("td", { class: "uia-num" }));
        body.append(row);
      }
      const { letter, colour } = seriesOf(id);
      const [name, share, served, failed, flight, latency] = row.cells;
      const sum = (field) => bars.reduce((total, bar) => total + (bar[field][id] ?? 0), 0);
      put(row, "data-backend", id);
      const [swatch, label] = name.firstChild.children;
      put(swatch, "style", `border-left-color:${colour}`);
      write(swatch, letter);
      write(label, known.get(id)?.name ?? id);
      put(name, "title", id);
      setNumber(share, all ? Math.round((100 * sum("ok")) / all) : null, "%", 1.2);
      setNumber(served, sum("ok"));
      setNumber(failed, sum("failed"));
      setNumber(flight, known.get(id)?.metrics?.active_connections ?? 0);
      setNumber(latency, ...(duration(known.get(id)?.metrics?.p50_latency_ms) ?? [null, ""]), 1.7);
    });
  }

  let timeAt = () => null;

  function paint(whole = false) {
    setPill(pill, service.state);
    root.classList.toggle("uia-stale", isStale(service.state));
    const chosen = service.report?.strategy;
    if (chosen && document.activeElement !== strategy) {
      if (![...strategy.options].some((option) => option.value === chosen)) setOptions(strategy, [chosen]);
      if (strategy.value !== chosen) strategy.value = chosen;
    }
    // Without any width it is hidden, or the page is between two themes; it is told when it has one again.
    if (!svg.parentElement.clientWidth) return;
    // Drawn as often as the reader wants it, and at once when something was chosen.
    const due = performance.now() - painted >= Number(every.value) * 1000 - 100;
    if (whole !== true && ((frozen !== null && painted) || !due)) return;
    painted = performance.now();
    for (const backend of service.report?.backends ?? []) seriesOf(backend.id);
    for (const sample of trace().samples) for (const id of Object.keys(sample.backends)) seriesOf(id);
    const to = end();
    const from = to - Number(windowChoice.value);
    const bars = barsOf(trace().samples, from, to, step());
    const marks = marksOf(trace().transitions).filter((mark) => mark.at > from && mark.at <= to);
    timeAt = drawPanels(bars, marks, from, to);
    const at = hover === null ? null : timeAt(hover);
    const bar = at === null ? bars.at(-1) : bars.find((each) => at >= each.start && at < each.start + step());
    write(readout, bar ? said(bar) : "Nothing was recorded then.");
    const last = marks.at(-1);
    const word = last?.down ? "out of service" : "back in service";
    write(event, last ? `${timeOfDay(last.at)} ${last.id} ${word}: ${last.reason}` : "No backend failed or came back in this window.");
    event.dataset.kind = last ? (last.down ? "down" : "up") : "";
    put(event, "title", event.textContent);
    put(svg, "aria-label", `Share, load and latency from ${timeOfDay(from)} to ${timeOfDay(to)}; the table below has the figures.`);
    drawLegend(bars);
    const behind = Math.round(now() - to);
    write(ago, behind < 2 ? "now" : `${Math.floor(behind / 60)}:${String(behind % 60).padStart(2, "0")} ago`);
  }

  const draw = () => paint(true);

  function freeze(yes) {
    frozen = yes ? (frozen ?? now()) : null;
    pause.setAttribute("aria-pressed", String(yes));
    write(pause, yes ? "Resume" : "Pause");
    if (!yes) back.value = "0";
    draw();
  }

  async function loadStrategies() {
    const told = await service.ask("strategies").catch(() => null);
    if (!told) return;
    setOptions(strategy, told.known);
    strategy.value = told.strategy;
  }

  pause.addEventListener("click", () => freeze(frozen === null));
  back.addEventListener("input", () => {
    if (Number(back.value) > 0) freeze(true);
    else draw();
  });
  windowChoice.addEventListener("change", draw);
  every.addEventListener("change", draw);
  strategy.addEventListener("focus", loadStrategies, { once: true });
  strategy.addEventListener("change", async () => {
    const done = (told) => `Requests are shared by ${told.strategy} from now on.`;
    if (!(await act(strategy, notice, done, () => service.ask("set_strategy", strategy.value)))) {
      strategy.value = service.report?.strategy ?? "";
    }
  });
  svg.addEventListener("pointermove", (moved) => {
    hover = moved.clientX - svg.getBoundingClientRect().left;
    requestAnimationFrame(draw);
  });
  svg.addEventListener("pointerleave", () => {
    hover = null;
    draw();
  });
  const resized = new ResizeObserver(() => requestAnimationFrame(draw));
  resized.observe(svg.parentElement);
  loadStrategies();
  draw();
  return () => {
    resized.disconnect();
    service.close();
  };
}

export default { render };
