// The backends of a service, live.

const RENEW_MS = 5_000;

// key, heading, class, title
const COLUMNS = [
  ["backend", "Backend", "", ""],
  ["type", "Type", "uia-roomy", ""],
  ["status", "Status", "", ""],
  ["reason", "Reason", "uia-roomy", ""],
  ["active_connections", "In flight", "uia-num", "Requests it works on now"],
  ["current_queue_size", "Queue", "uia-num", "Requests waiting for it"],
  ["requests", "Ok / failed", "uia-num", "Attempts that succeeded and failed"],
  ["p50_latency_ms", "p50", "uia-num", "Median latency"],
  ["time_to_first_token_ms", "First token", "uia-num", "Time to first token"],
  ["tokens_per_second", "Speed", "uia-num", "Tokens a second"],
  ["models", "Models", "uia-wide", ""],
];

function render({ model, el }) {
  const pill = makePill({ role: "status", "aria-live": "polite", "data-testid": "uia-board-connection" });
  const totals = make("span", { class: "uia-facts", "data-testid": "uia-board-totals" });
  const where = make("p", { class: "uia-foot" });
  const heads = COLUMNS.map(([, heading, kind, title]) =>
    make("th", { scope: "col", class: kind || null, title: title || null }, heading),
  );
  const body = make("tbody");
  const empty = make("p", { class: "uia-empty", hidden: "" }, "No backend is registered yet.");
  const table = make(
    "table",
    { class: "uia-table", "data-testid": "uia-board-table" },
    make("caption", { class: "uia-hidden" }, "Inference backends, live"),
    make("thead", {}, make("tr", {}, ...heads)),
    body,
  );
  const root = make("section", { class: "uia uia-board", "data-testid": "uia-board", "aria-label": "Backends" });
  root.append(
    make("div", { class: "uia-bar" }, make("strong", { class: "uia-title" }, "Backends"), totals, pill),
    make("div", { class: "uia-scroll" }, table),
    empty,
    where,
  );
  el.append(root);

  const rows = new Map();
  let trouble = false;
  let fromKernel = false;

  // Every cell of a column has a unit of the same width, so that the digits stand in line.
  function number(cell, value, unit = "", width = 0) {
    const missing = value === null || value === undefined;
    const shown = missing ? "–" : String(value);
    if (cell.dataset.shown === shown + unit) return;
    cell.dataset.shown = shown + unit;
    cell.replaceChildren(shown);
    if (width) cell.append(make("span", { class: "uia-unit", style: `width:${width}em` }, missing ? "" : unit));
  }

  function makeRow(backend) {
    const cells = COLUMNS.map(([, , kind], index) =>
      index ? make("td", { class: kind || null }) : make("th", { scope: "row" }),
    );
    const [name, , status] = cells;
    name.append(
      make("span", { class: "uia-name" }),
      make("span", { class: "uia-sub" }),
      make("span", { class: "uia-sub uia-folded-type" }),
      make("span", { class: "uia-sub uia-folded-models" }),
    );
    status.append(makePill(), make("span", { class: "uia-sub uia-folded-type" }));
    const row = make("tr", { "data-testid": "uia-board-row", "data-backend": backend.id }, ...cells);
    rows.set(backend.id, row);
    return row;
  }

  function drawRow(row, backend) {
    const metrics = backend.metrics ?? {};
    const [name, type, status, reason, flight, queue, requests, p50, first, speed, models] = row.cells;
    const listed = (backend.models ?? []).join(", ") || "any";
    write(name.children[0], backend.name || backend.id);
    write(name.children[1], backend.id);
    name.children[1].hidden = backend.name === backend.id;
    write(name.children[2], backend.type);
    write(name.children[3], listed);
    // A backend that is named after its only model need not say it twice.
    name.children[3].hidden = listed === backend.name;
    write(type, backend.type);
    setPill(status.firstChild, backend.status);
    write(status.lastChild, backend.reason ?? "");
    write(reason, backend.reason ?? "");
    number(flight, metrics.active_connections ?? 0);
    number(queue, metrics.current_queue_size ?? 0);
    number(requests, `${metrics.successful_requests ?? 0} / ${metrics.failed_requests ?? 0}`);
    number(p50, ...(duration(metrics.p50_latency_ms) ?? [null, ""]), 1.7);
    number(first, ...(duration(metrics.time_to_first_token_ms) ?? [null, ""]), 1.7);
    number(speed, rate(metrics.tokens_per_second), "tok/s", 2.9);
    write(models, listed);
    row.classList.toggle("uia-busy", (metrics.active_connections ?? 0) > 0);
    row.classList.toggle("uia-out", backend.routable === false);
  }

  function drawTotals(report) {
    const count = report.total_backends ?? 0;
    const items = [
      [`${report.backends_by_status?.healthy ?? 0} of ${count}`, "healthy"],
      [report.in_flight ?? 0, "in flight"],
      [report.total_successful ?? 0, "ok"],
      [report.total_failed ?? 0, "failed"],
      [report.total_cancelled ?? 0, "cancelled"],
      [report.total_rejected ?? 0, "rejected"],
      [report.strategy ?? "", "strategy"],
    ];
    totals.replaceChildren(
      ...items.map(([value, key]) => {
        const item = make("span", { class: "uia-fact" });
        item.append(make("span", {}, String(value)), " ", make("span", { class: "uia-key" }, key));
        return item;
      }),
    );
  }

  function draw(report) {
    const backends = report.backends ?? [];
    drawTotals(report);
    const kept = new Set(backends.map((backend) => backend.id));
    for (const [id, row] of rows) {
      if (!kept.has(id)) {
        row.remove();
        rows.delete(id);
      }
    }
    backends.forEach((backend, index) => {
      const row = rows.get(backend.id) ?? makeRow(backend);
      if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
      drawRow(row, backend);
    });
    empty.hidden = backends.length > 0;
    table.hidden = backends.length === 0;
    write(where, `Served by ${model.get("where")}`);
  }

  function setConnection(state) {
    setPill(pill, state);
    root.classList.toggle("uia-stale", state === "reconnecting");
  }

  function askKernel() {
    if (fromKernel && !document.hidden) model.send({ type: "poll" });
  }

  function useKernel(yes) {
    if (yes && !fromKernel) {
      fromKernel = true;
      askKernel();
    }
    fromKernel = yes;
    if (yes) setConnection(trouble ? "reconnecting" : "from kernel");
  }

  // The page's server may be another instance than the one asked for: then only the kernel knows it.
  function heardLive(seen) {
    const ours = seen.instance !== null && seen.instance === model.get("instance_id");
    if (ours) {
      useKernel(false);
      setConnection(seen.state === "live" ? "live" : "reconnecting");
      if (seen.report) draw(seen.report);
    } else if (seen.instance !== null || seen.state === "unavailable") {
      useKernel(true);
    }
  }

  function heardKernel() {
    trouble = false;
    if (fromKernel) {
      setConnection("from kernel");
      draw(model.get("report"));
    }
  }

  function heardMessage(message) {
    if (message?.type !== "trouble") return;
    trouble = true;
    if (fromKernel) setConnection("reconnecting");
  }

  setConnection("connecting");
  draw(model.get("report"));
  model.on("change:report", heardKernel);
  model.on("msg:custom", heardMessage);
  const renew = setInterval(askKernel, RENEW_MS);
  let leave = () => {};
  if (model.get("direct") && pageServer()) leave = liveOfPage().subscribe(heardLive);
  else useKernel(true);

  return () => {
    leave();
    clearInterval(renew);
    model.off("change:report", heardKernel);
    model.off("msg:custom", heardMessage);
  };
}

export default { render };
