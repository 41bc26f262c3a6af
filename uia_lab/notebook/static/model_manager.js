// The models of the serving machine: state, memory, device; load and unload.

const LOOK_MS = 5_000;
const MANY = 8;
const KEEP = [["", "as set"], ["300", "5 min"], ["1800", "30 min"], ["14400", "4 h"], ["0", "for good"]];
const STATES = { loaded: "loaded", loading: "loading", unloaded: "unloaded", loadable: "loadable", "not loadable": "not loadable" };

function render({ model, el }) {
  const facts = make("span", { class: "uia-facts", "data-testid": "uia-models-facts" });
  const filter = make("input", { type: "search", class: "uia-input uia-models-filter", placeholder: "Filter", "aria-label": "Filter the models", "data-testid": "uia-models-filter", hidden: "" });
  const heads = [
    ["Model"],
    ["State"],
    ["Size", "uia-num uia-roomy"],
    ["Memory", "uia-num"],
    ["Device", "uia-roomy"],
    ["Unload when idle", "uia-models-action"],
  ].map(([word, kind]) => make("th", { scope: "col", class: kind }, word));
  const body = make("tbody");
  const table = make("table", { class: "uia-table" });
  table.append(
    make("caption", { class: "uia-hidden" }, "Models of the serving machine"),
    make("thead", {}, make("tr", {}, ...heads)),
    body,
  );
  const empty = make("p", { class: "uia-empty" }, "Looking for models…");
  const trouble = make("p", { class: "uia-error", role: "alert", hidden: "" });
  const name = make("input", { type: "text", class: "uia-input uia-models-name", placeholder: "name, folder, GGUF file or hub id", "aria-label": "Another model to load", "data-testid": "uia-models-name" });
  const other = make("form", { class: "uia-models-other" });
  other.append(
    make("label", { class: "uia-key" }, "Another one"),
    name,
    make("button", { type: "submit", class: "uia-act", "data-testid": "uia-models-other" }, "Load"),
  );
  const root = make("section", { class: "uia uia-models", "aria-label": "Models", "data-testid": "uia-models" });
  root.append(
    make("div", { class: "uia-bar" }, make("span", { class: "uia-title" }, "Models"), facts, filter),
    make("div", { class: "uia-scroll" }, table),
    empty,
    trouble,
    other,
  );
  el.append(root);

  const rows = new Map();

  function figure(cell, value) {
    cell.replaceChildren(...(value ? [value[0], make("span", { class: "uia-unit" }, value[1])] : ["–"]));
  }

  function makeSelect(label, options, attributes) {
    const select = make("select", { class: "uia-input", "aria-label": label, ...attributes });
    select.append(...options.map(([value, word]) => make("option", { value }, word)));
    return select;
  }

  function makeRow(id) {
    const title = make("span", { class: "uia-name" }, id);
    const about = make("span", { class: "uia-sub" });
    const folded = make("span", { class: "uia-sub uia-models-folded" });
    const pill = makePill();
    const busy = make("span", { class: "uia-sub" });
    const size = make("td", { class: "uia-num uia-roomy" });
    const memory = make("td", { class: "uia-num" });
    const device = make("td", { class: "uia-roomy" });
    const keep = makeSelect(`Idle time of ${id}`, KEEP, { "data-testid": "uia-models-keep" });
    const act = actButton("Load", { "data-testid": "uia-models-act" }, () => {
      act.disabled = true;
      if (row.unlisted) model.send({ type: "dismiss", model_id: id });
      else if (row.state === "loaded") model.send({ type: "unload", model_id: id });
      else load(id, row.device?.value, keep.value);
    });
    const line = make("tr", { "data-testid": "uia-models-row", "data-model": id });
    line.append(
      make("th", { scope: "row" }, title, about, folded),
      make("td", {}, pill, busy),
      size,
      memory,
      device,
      make("td", { class: "uia-models-action" }, keep, " ", act),
    );
    const progress = makeProgress(`Loading ${id}`);
    const error = make("p", { class: "uia-error", role: "alert", "data-testid": "uia-models-error" });
    const below = make("tr", { class: "uia-models-below", hidden: "" });
    below.append(make("td", { colspan: heads.length }, progress.element, error));
    const row = { line, below, progress, state: "", device: null, choices: "" };
    keep.addEventListener("change", () => {
      if (row.state === "loaded" && keep.value !== "") model.send({ type: "load", model_id: id, keep_alive: Number(keep.value) });
    });

    function drawDevice(known) {
      const choices = (model.get("hardware").devices ?? []).map((each) => each.id);
      const fixed = row.state === "loaded" || row.state === "loading" || choices.length < 2 || known.engine === "llamacpp";
      const wanted = fixed ? `text ${known.device ?? "cpu"}` : choices.join(" ");
      if (row.choices === wanted) return;
      row.choices = wanted;
      row.device = fixed ? null : makeSelect(`Device for ${id}`, [["", "best"], ...choices.map((each) => [each, each])], { "data-testid": "uia-models-device" });
      device.replaceChildren(row.device ?? (known.device ?? (known.state === "not loadable" ? "–" : "cpu")));
    }

    row.draw = (known, step) => {
      const loading = Boolean(step?.stage) || known.state === "loading";
      const state = loading ? "loading" : known.state;
      const changed = state !== row.state;
      row.state = state;
      row.unlisted = known.unlisted && !loading;
      line.dataset.state = state;
      setPill(pill, STATES[state] ?? state);
      write(about, [known.task, known.engine, known.origin].filter(Boolean).join(" · "));
      const parts = [bytes(known.size)?.join(" "), known.device].filter(Boolean);
      write(folded, parts.join(" · "));
      write(busy, known.active ? `${known.active} running` : state === "loaded" ? "idle" : "");
      figure(size, bytes(known.size));
      const needs = bytes(known.estimated_bytes);
      figure(memory, needs ? [(state === "loaded" ? "" : "~ ") + needs[0], needs[1]] : null);
      const free = model.get("hardware").available_bytes;
      const tight = state !== "loaded" && free !== undefined && known.estimated_bytes > free;
      memory.classList.toggle("uia-tight", tight);
      memory.title = tight ? `more than the ${bytes(free).join(" ")} that are free` : state === "loaded" ? "what it takes" : "what it would take";
      drawDevice(known);
      write(act, row.unlisted ? "Dismiss" : state === "loaded" ? "Unload" : loading ? "Loading…" : "Load");
      if (changed || !loading) act.disabled = loading || (state === "not loadable" && !row.unlisted);
      act.setAttribute("aria-label", `${act.textContent} ${id}`);
      keep.disabled = loading || state === "not loadable";
      if (known.keep_alive !== undefined && document.activeElement !== keep) {
        keep.value = KEEP.some(([value]) => value === String(known.keep_alive)) ? String(known.keep_alive) : "";
      }
      const said = step?.error ?? (state !== "loaded" && !loading ? known.reason : "");
      progress.element.hidden = !loading;
      if (loading) progress.set(step?.stage ? step : { stage: "loading", done: 0, total: 1 });
      error.hidden = !said;
      write(error, said || "");
      below.hidden = !loading && !said;
    };
    return row;
  }

  function load(id, device, keep) {
    const message = { type: "load", model_id: id };
    if (device) message.device = device;
    if (keep) message.keep_alive = Number(keep);
    model.send(message);
  }

  function draw() {
    const listed = model.get("rows");
    const loads = model.get("loads");
    const there = new Set(listed.map((each) => each.model_id));
    const unlisted = Object.keys(loads).filter((id) => !there.has(id)).map((id) => ({ model_id: id, state: "not loadable", unlisted: true }));
    const all = [...unlisted, ...listed];
    const wanted = filter.value.trim().toLowerCase();
    let last = null;
    const seen = new Set();
    for (const known of all) {
      const id = known.model_id;
      const key = `${id} ${known.backend_id ?? ""}`;
      seen.add(key);
      if (!rows.has(key)) rows.set(key, makeRow(id));
      const row = rows.get(key);
      row.draw(known, loads[id]);
      const shown = `${id} ${known.task ?? ""} ${known.engine ?? ""}`.toLowerCase().includes(wanted);
      row.line.hidden = !shown;
      if (!shown) row.below.hidden = true;
      const place = last ? last.nextSibling : body.firstChild;
      if (place !== row.line) body.insertBefore(row.line, place);
      if (row.line.nextSibling !== row.below) body.insertBefore(row.below, row.line.nextSibling);
      last = row.below;
    }
    for (const [key, row] of rows) {
      if (seen.has(key)) continue;
      row.line.remove();
      row.below.remove();
      rows.delete(key);
    }
    filter.hidden = all.length <= MANY;
    empty.hidden = all.length > 0;
    drawFacts(listed);
    trouble.hidden = !model.get("trouble");
    write(trouble, model.get("trouble"));
  }

  function drawFacts(listed) {
    const items = [makeFact("loaded", `${listed.filter((each) => each.state === "loaded").length} of ${listed.length}`)];
    const { available_bytes: free, memory_bytes: whole } = model.get("hardware");
    if (free !== undefined) items.push(makeFact("memory free", `${(free / 1e9).toFixed(1)} of ${(whole / 1e9).toFixed(1)}`, "GB"));
    items.push(makeFact("on", model.get("where")));
    facts.replaceChildren(...items);
  }

  filter.addEventListener("input", draw);
  other.addEventListener("submit", (event) => {
    event.preventDefault();
    const id = name.value.trim();
    if (!id) return;
    load(id);
    name.value = "";
  });

  model.on("change", draw);
  draw();
  model.send({ type: "look" });
  model.send({ type: "hardware" });
  const clock = setInterval(() => {
    for (const row of rows.values()) if (row.state === "loading") row.progress.draw();
  }, 200);
  const looking = setInterval(() => {
    // Not while the page or the tab around it is hidden.
    if (!document.hidden && root.offsetParent) model.send({ type: "look" });
  }, LOOK_MS);
  return () => {
    clearInterval(clock);
    clearInterval(looking);
    model.off("change", draw);
  };
}

export default { render };
