// The backends of a service, live, and what an operator does to them.

const SHARE_S = 300;
const SPARK_VALUES = 40;
const SPARK = [64, 18];
const STALE_MS = 5_000;

// key, heading, class, title
const COLUMNS = [
  ["backend", "Backend", "uia-c-name", ""],
  ["status", "Status", "uia-c-status", ""],
  ["share", "Share", "uia-num uia-c-share", "Share of what was served in the last five minutes"],
  ["flight", "In flight", "uia-num uia-c-count", "Requests it works on now"],
  ["queue", "Queue", "uia-num uia-c-count", "Requests waiting that it could serve"],
  ["latency", "Latency", "uia-num uia-c-latency", "Median latency; the curve is that of the last seconds in which something ended"],
  ["first", "First token", "uia-num uia-c-first uia-roomy", "Median time to the first token"],
  ["speed", "Speed", "uia-num uia-c-speed uia-roomy", "Tokens a second"],
  ["ended", "Ok / failed", "uia-num uia-c-ended uia-roomy", "Attempts that succeeded and failed"],
  ["models", "Models", "uia-c-models uia-wide", ""],
];

/** What is served by each backend since a moment: id to count; `all` is the sum. */
function servedSince(trace, since) {
  const counts = { all: 0 };
  for (const sample of trace.samples) {
    if (sample.at < since) continue;
    for (const [id, [ok]] of Object.entries(sample.backends)) {
      counts[id] = (counts[id] ?? 0) + ok;
      counts.all += ok;
    }
  }
  return counts;
}

/** Median latency of a backend in each of the last seconds in which something ended there. */
function latenciesOf(trace, id) {
  const known = trace.samples.map((sample) => sample.backends[id]?.[4] ?? null).filter((value) => value !== null);
  return known.slice(-SPARK_VALUES);
}

function stateOf(backend) {
  return backend.enabled === false ? "drained" : backend.status;
}

/** The panel below the table: everything about one backend, and its actions. */
function makeDetails(service, close) {
  const title = make("h3", { class: "uia-subtitle" });
  const probe = makeButton("Probe now", { "data-testid": "uia-board-probe", title: "Look at it; free of charge" });
  const drain = makeButton("Drain", { "data-testid": "uia-board-drain" });
  const weight = make("input", {
    class: "uia-input uia-short",
    type: "number",
    min: "0.1",
    step: "any",
    "data-testid": "uia-board-weight",
  });
  const setWeight = makeButton("Set", { "data-testid": "uia-board-set-weight" });
  const shut = makeButton("Close", { "data-testid": "uia-board-close" });
  const notice = makeNotice({ "data-testid": "uia-board-notice" });
  const facts = make("dl", { class: "uia-list" });
  const errors = make("ul", { class: "uia-log", "data-testid": "uia-board-errors" });
  const changes = make("ul", { class: "uia-log", "data-testid": "uia-board-transitions" });
  const root = make("div", { class: "uia-details", hidden: "", "data-testid": "uia-board-details" });
  root.append(
    make(
      "div",
      { class: "uia-tools" },
      title,
      probe,
      drain,
      make("label", { class: "uia-label" }, make("span", { class: "uia-key" }, "Weight"), weight),
      setWeight,
      shut,
    ),
    notice,
    make(
      "div",
      { class: "uia-columns" },
      facts,
      make("section", {}, make("h4", { class: "uia-key" }, "Last errors"), errors),
      make("section", {}, make("h4", { class: "uia-key" }, "Changes of status"), changes),
    ),
  );
  let shown = null;
  let asked = { key: null, at: 0 };

  function entry(at, state, text) {
    const pill = makePill();
    setPill(pill, state);
    const item = make("li", {}, make("time", { class: "uia-key" }, timeOfDay(at)), pill);
    item.append(make("span", { class: "uia-said" }, text));
    return item;
  }

  function none(text) {
    return make("li", { class: "uia-key" }, text);
  }

  // Asked when it is opened, when something has changed, and now and then.
  async function look(backend) {
    const key = `${backend.id} ${backend.status} ${backend.enabled} ${backend.metrics?.failed_requests}`;
    if (asked.key === key && Date.now() - asked.at < STALE_MS) return;
    asked = { key, at: Date.now() };
    const told = await service.ask("backend", backend.id).catch(() => null);
    if (!told || shown !== backend.id) return;
    const list = (target, items, empty) => {
      const said = JSON.stringify(items);
      if (target.dataset.said === said) return;
      target.dataset.said = said;
      target.replaceChildren(...(items.length ? items.map((item) => entry(...item)) : [none(empty)]));
    };
    list(
      errors,
      told.errors.map((item) => [Math.round(item.at), "failed", `${item.code.replaceAll("_", " ")}: ${item.message}`]),
      "None since it was registered.",
    );
    list(
      changes,
      told.transitions.map((item) => [Math.round(item.at), item.status, item.reason]),
      "None yet.",
    );
  }

  function drawFacts(backend) {
    const metrics = backend.metrics ?? {};
    const whole = (value) => (value ?? 0).toLocaleString("en-US").replaceAll(",", "\u202f");
    const time = (ms) => (duration(ms) ?? ["–"]).join(" ");
    const items = [
      ["Id", backend.id],
      ["Type", backend.type],
      ["Why", backend.reason || "–"],
      ["Address", backend.endpoint ?? "in this process"],
      ["Models", (backend.models ?? []).join(", ") || "any"],
      ["Tasks", (backend.tasks ?? []).join(", ") || "–"],
      ["At once", backend.max_concurrency ?? "no bound"],
      ["Attempts", `${whole(metrics.successful_requests)} ok, ${whole(metrics.failed_requests)} failed, ` +
        `${whole(metrics.cancelled_requests)} cancelled`],
      ["Latency", `p50 ${time(metrics.p50_latency_ms)}, p95 ${time(metrics.p95_latency_ms)}`],
      ["First token", time(metrics.time_to_first_token_ms)],
      ["Speed", metrics.tokens_per_second ? `${rate(metrics.tokens_per_second)} tok/s` : "–"],
      ["Tokens", `${whole(metrics.input_tokens)} in, ${whole(metrics.output_tokens)} out`],
    ];
    if (facts.children.length !== items.length * 2) {
      facts.replaceChildren(...items.flatMap(([name]) => [make("dt", { class: "uia-key" }, name), make("dd")]));
    }
    items.forEach(([name, value], index) => {
      const cell = facts.children[2 * index + 1];
      write(cell, String(value));
      // It changes while people read what is below it.
      if (name === "Why") put(cell, "class", "uia-two-lines");
      put(cell, "title", value);
    });
  }

  probe.addEventListener("click", () =>
    act(probe, notice, (told) => `${told.name}: ${told.status}. ${told.reason}`, () =>
      service.ask("probe_backend", shown),
    ),
  );
  drain.addEventListener("click", () => {
    const draining = drain.dataset.does === "drain";
    const done = draining ? "Drained: it gets no new requests." : "Enabled: it gets requests again.";
    act(drain, notice, done, () => service.ask("change_backend", shown, { draining }));
  });
  setWeight.addEventListener("click", () => {
    const wanted = Number(weight.value);
    if (!(wanted > 0)) {
      notice.say("A weight is a number above 0; 2 gets twice as much as 1.", "bad");
      return;
    }
    act(setWeight, notice, `Its weight is ${wanted} now.`, () =>
      service.ask("change_backend", shown, { weight: wanted }),
    );
  });
  shut.addEventListener("click", close);

  return {
    root,
    show(backend) {
      if (shown !== backend?.id) {
        shown = backend?.id ?? null;
        notice.say("");
        for (const list of [errors, changes]) {
          list.dataset.said = "";
          list.replaceChildren(none("…"));
        }
        weight.value = backend?.weight ?? 1;
      }
      root.hidden = !backend;
      if (!backend) return;
      write(title, backend.name || backend.id);
      drain.dataset.does = backend.enabled === false ? "enable" : "drain";
      write(drain, backend.enabled === false ? "Enable" : "Drain");
      put(drain, "title", backend.enabled === false ? "Sends it requests again" : "Sends it no new requests");
      if (document.activeElement !== weight && weight.dataset.told !== String(backend.weight)) {
        weight.dataset.told = String(backend.weight);
        weight.value = backend.weight;
      }
      drawFacts(backend);
      look(backend);
    },
  };
}

function render({ model, el }) {
  const service = serviceOf(model, paint, { history: true });
  const pill = makePill({ role: "status", "aria-live": "polite", "data-testid": "uia-board-connection" });
  const totals = make("span", { class: "uia-facts", "data-testid": "uia-board-totals" });
  const where = make("p", { class: "uia-foot" });
  const [typeLabel, typeChoice] = makeSelect("Type", [["", "all"]], { "data-testid": "uia-board-type" });
  const heads = COLUMNS.map(([, heading, kind, title]) =>
    make("th", { scope: "col", class: kind, title: title || null }, heading),
  );
  const body = make("tbody");
  const empty = make("p", { class: "uia-empty", hidden: "", "data-testid": "uia-board-empty" });
  const table = make(
    "table",
    { class: "uia-table uia-fixed", "data-testid": "uia-board-table" },
    make("caption", { class: "uia-hidden" }, "Inference backends, live"),
    make("thead", {}, make("tr", {}, ...heads)),
    body,
  );
  let open = null;
  const details = makeDetails(service, () => {
    const row = rows.get(open);
    open = null;
    paint();
    row?.querySelector("button").focus();
  });
  const root = make("section", { class: "uia uia-board", "data-testid": "uia-board", "aria-label": "Backends" });
  root.append(
    make("div", { class: "uia-bar" }, make("strong", { class: "uia-title" }, "Backends"), totals, typeLabel, pill),
    make("div", { class: "uia-scroll" }, table),
    empty,
    details.root,
    where,
  );
  el.append(root);
  const rows = new Map();

  function makeRow(backend) {
    const cells = COLUMNS.map(([, , kind], index) =>
      index ? make("td", { class: kind }) : make("th", { scope: "row", class: kind }),
    );
    const [name, status, share, , , latency] = cells;
    const opener = make("button", { type: "button", class: "uia-opener", "data-testid": "uia-board-open" });
    opener.append(make("span", { class: "uia-chevron", "aria-hidden": "true" }), make("span", { class: "uia-name" }));
    opener.addEventListener("click", () => {
      open = open === backend.id ? null : backend.id;
      paint();
    });
    name.append(opener, make("span", { class: "uia-sub uia-cut" }));
    status.append(makePill(), make("span", { class: "uia-sub uia-cut" }));
    share.append(
      make("span", {}),
      make("span", { class: "uia-meter", "aria-hidden": "true" }, make("span", { class: "uia-meter-fill" })),
    );
    const curve = makeSvg("path", { class: "uia-spark-line" });
    latency.append(
      makeSvg("svg", { class: "uia-spark", viewBox: `0 0 ${SPARK.join(" ")}`, "aria-hidden": "true" }, curve),
      make("span", {}),
    );
    const row = make("tr", { "data-testid": "uia-board-row", "data-backend": backend.id }, ...cells);
    rows.set(backend.id, row);
    return row;
  }

  function drawRow(row, backend, served) {
    const metrics = backend.metrics ?? {};
    const [name, status, share, flight, queue, latency, first, speed, ended, models] = row.cells;
    const listed = (backend.models ?? []).join(", ") || "any";
    write(name.querySelector(".uia-name"), backend.name || backend.id);
    put(name.firstChild, "aria-expanded", open === backend.id);
    const sub = backend.name && backend.name !== backend.id ? `${backend.type} · ${backend.id}` : backend.type;
    write(name.lastChild, sub);
    put(name, "title", `${backend.name || backend.id} (${backend.id})`);
    setPill(status.firstChild, stateOf(backend));
    write(status.lastChild, backend.reason ?? "");
    put(status, "title", backend.reason ?? "");
    const part = served.all ? (served[backend.id] ?? 0) / served.all : null;
    setNumber(share.firstChild, part === null ? null : Math.round(part * 100), "%", 1.3);
    share.querySelector(".uia-meter-fill").style.width = `${Math.round((part ?? 0) * 100)}%`;
    setNumber(flight, metrics.active_connections ?? 0);
    setNumber(queue, metrics.current_queue_size ?? 0);
    put(latency.querySelector("path"), "d", sparkline(latenciesOf(service.trace, backend.id), ...SPARK));
    setNumber(latency.lastChild, ...(duration(metrics.p50_latency_ms) ?? [null, ""]), 1.7);
    setNumber(first, ...(duration(metrics.time_to_first_token_ms) ?? [null, ""]), 1.7);
    setNumber(speed, rate(metrics.tokens_per_second), "tok/s", 2.9);
    setNumber(ended, `${metrics.successful_requests ?? 0} / ${metrics.failed_requests ?? 0}`);
    write(models, listed);
    put(models, "title", listed);
    row.classList.toggle("uia-busy", (metrics.active_connections ?? 0) > 0);
    row.classList.toggle("uia-out", backend.routable === false);
    row.classList.toggle("uia-open", open === backend.id);
  }

  function drawTotals(report) {
    const items = [
      [report.strategy ?? "", "strategy"],
      [`${report.backends_by_status?.healthy ?? 0} of ${report.total_backends ?? 0}`, "healthy"],
      [report.in_flight ?? 0, "in flight"],
      [report.total_successful ?? 0, "ok"],
      [report.total_failed ?? 0, "failed"],
      [report.total_cancelled ?? 0, "cancelled"],
      [report.total_rejected ?? 0, "rejected"],
    ];
    if (!totals.children.length) {
      for (const [, key] of items) {
        const fact = make("span", { class: "uia-fact" }, make("span", { class: "uia-value" }), " ");
        fact.append(make("span", { class: "uia-key" }, key));
        totals.append(fact);
      }
    }
    items.forEach(([value], index) => write(totals.children[index].firstChild, String(value)));
  }

  function drawTypes(backends) {
    const counts = new Map();
    for (const { type } of backends) counts.set(type, (counts.get(type) ?? 0) + 1);
    const options = [...counts].sort().map(([type, count]) => [type, `${type} (${count})`]);
    setOptions(typeChoice, [["", `all (${backends.length})`], ...options]);
  }

  function paint() {
    const report = service.report ?? {};
    const all = report.backends ?? [];
    setPill(pill, service.state);
    root.classList.toggle("uia-stale", isStale(service.state));
    drawTotals(report);
    drawTypes(all);
    const backends = all.filter((backend) => !typeChoice.value || backend.type === typeChoice.value);
    const served = servedSince(service.trace, (service.trace.samples.at(-1)?.at ?? 0) - SHARE_S);
    const kept = new Set(backends.map((backend) => backend.id));
    for (const [id, row] of rows) {
      if (!kept.has(id)) {
        row.remove();
        rows.delete(id);
      }
    }
    if (open !== null && !kept.has(open)) open = null;
    backends.forEach((backend, index) => {
      const row = rows.get(backend.id) ?? makeRow(backend);
      if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
      drawRow(row, backend, served);
    });
    details.show(backends.find((backend) => backend.id === open) ?? null);
    empty.hidden = backends.length > 0;
    write(empty, "No backend is registered yet: lab.backends.add(address) adds one.");
    table.hidden = backends.length === 0;
    write(where, `Served by ${model.get("where")}`);
  }

  typeChoice.addEventListener("change", paint);
  paint();
  return () => service.close();
}

export default { render };
