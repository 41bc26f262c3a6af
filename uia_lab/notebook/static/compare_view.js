// Answers to one prompt, side by side: while they arrive with Stop, afterwards with Copy below their still form.

const OVER = new Set(["done", "stopped", "failed"]);
const HINT_AFTER_MS = 3_000;

function render({ model, el }) {
  const asked = new Set();
  const stopping = new Set();
  const prompt = make("span", { class: "uia-compare-prompt", title: model.get("prompt") }, model.get("prompt"));
  const all = make("button", { type: "button", class: "uia-stop", "data-testid": "uia-compare-stop-all" }, "Stop all");
  const grid = make("div", { class: "uia-compare-grid" });
  const hint = make("p", { class: "uia-error", role: "alert", hidden: "" });
  const root = make("section", { class: "uia uia-compare", "aria-label": "Comparison", "data-testid": "uia-compare" });
  const bar = make("div", { class: "uia-bar" });
  bar.append(make("span", { class: "uia-title" }, "Compare"), prompt, all);
  root.append(bar, grid, hint);
  el.append(root);

  const columns = model.get("columns").map((first, index) => {
    const pill = makePill({ role: "status", "aria-live": "polite" });
    const stop = make("button", { type: "button", class: "uia-stop", "data-testid": "uia-compare-stop", "aria-label": `Stop ${first.label}` }, "Stop");
    const text = document.createTextNode("");
    const error = make("p", { class: "uia-error", role: "alert", hidden: "" });
    const figures = new Map(
      ["backend", "first token", "time", "speed", "tokens", "cost"].map((name) => [name, make("td", { class: "uia-num" }, "–")]),
    );
    const table = make("table", { class: "uia-compare-figures" });
    table.append(
      make("caption", { class: "uia-hidden" }, `Figures of ${first.label}`),
      make("tbody", {}, ...[...figures].map(([name, cell]) => make("tr", {}, make("th", { scope: "row" }, name), cell))),
    );
    const head = make("div", { class: "uia-compare-head" }, make("b", { title: first.label }, first.label), pill, stop);
    const body = make("div", { class: "uia-compare-text", tabindex: "0", role: "group", "aria-label": `Answer of ${first.label}` }, text);
    const column = make("article", { class: "uia-compare-column", "data-testid": "uia-compare-column" }, head, body, error, table);
    grid.append(column);
    stop.addEventListener("click", () => {
      end([index]);
      model.send({ type: "stop", index });
    });
    return { pill, stop, text, body, error, figures, column };
  });

  function figure(cell, value) {
    const unit = value?.[1] ? [make("span", { class: "uia-unit" }, value[1])] : [];
    cell.replaceChildren(value?.[0] ?? "–", ...unit);
  }

  function draw() {
    const shown = model.get("columns");
    shown.forEach((one, index) => {
      const column = columns[index];
      column.column.dataset.state = one.state;
      column.column.toggleAttribute("data-first", one.fastest);
      setPill(column.pill, one.state);
      column.stop.hidden = OVER.has(one.state);
      writeText(column.text, one.text);
      column.error.hidden = !one.error;
      column.body.hidden = Boolean(one.error) && !one.text;
      write(column.error, one.error);
      figure(column.figures.get("backend"), one.backend ? [one.backend] : null);
      figure(column.figures.get("first token"), one.first_token_s === null ? null : duration(one.first_token_s * 1000));
      figure(column.figures.get("time"), duration(one.elapsed_s * 1000));
      figure(column.figures.get("speed"), one.tokens_per_s === null ? null : [rate(one.tokens_per_s), "tok/s"]);
      figure(column.figures.get("tokens"), one.tokens === null ? null : [String(one.tokens)]);
      figure(column.figures.get("cost"), one.cost === null ? null : [one.cost === 0 ? "0" : one.cost.toPrecision(2)]);
      if (stopping.has(index)) stopAtServer(model, one.request_id, asked);
    });
    all.hidden = shown.every((one) => OVER.has(one.state));
  }

  function end(indexes) {
    for (const index of indexes) {
      stopping.add(index);
      columns[index].stop.disabled = true;
      write(columns[index].stop, "Stopping…");
      stopAtServer(model, model.get("columns")[index].request_id, asked);
    }
    setTimeout(() => {
      if (indexes.every((index) => OVER.has(model.get("columns")[index].state))) return;
      hint.hidden = false;
      write(hint, "The kernel is busy in this cell and cannot hear Stop: interrupt it to end the requests.");
    }, HINT_AFTER_MS);
  }

  all.addEventListener("click", () => {
    all.disabled = true;
    end(columns.map((_, index) => index));
    model.send({ type: "stop" });
  });
  model.on("change", draw);
  draw();
  return () => model.off("change", draw);
}

function initialize({ model }) {
  return dressStills(model.get("mark"), (still) => {
    const added = [...still.querySelectorAll("[data-uia-column]")].map((column) => {
      const index = Number(column.dataset.uiaColumn);
      const label = model.get("columns")[index].label;
      const tools = make("div", { class: "uia uia-tools" });
      tools.append(
        copyButton("Copy", { "data-testid": "uia-compare-copy", "aria-label": `Copy the answer of ${label}` }, () => model.get("columns")[index].text),
      );
      column.append(tools);
      return tools;
    });
    const whole = make("div", { class: "uia uia-tools uia-compare-tools" });
    whole.append(copyButton("Copy all as text", { "data-testid": "uia-compare-copy-all" }, () => model.get("table")));
    still.append(whole);
    return () => [...added, whole].forEach((each) => each.remove());
  });
}

export default { initialize, render };
