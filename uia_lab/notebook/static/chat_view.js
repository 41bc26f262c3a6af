// A chat: turns, a place to write, and how the next turn is asked for.

const NAMES = { user: "You", assistant: "Assistant" };
const NUMBERS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: 0.1 }],
  ["max_tokens", "Max tokens", { min: 1, step: 1 }],
  ["top_p", "Top p", { min: 0, max: 1, step: 0.05 }],
  ["seed", "Seed", { step: 1 }],
];
// So near to the end counts as being there: new text keeps it in view.
const NEAR_PX = 60;

function render({ model, el }) {
  const asked = new Set();
  let editing = false;

  const modelPick = make("select", { class: "uia-input uia-chat-pick", "data-testid": "uia-chat-model" });
  const backendPick = make("select", { class: "uia-input uia-chat-pick", "data-testid": "uia-chat-backend" });
  const more = actButton("Settings", { "aria-expanded": "false", "data-testid": "uia-chat-settings" }, () => {
    panel.hidden = !panel.hidden;
    more.setAttribute("aria-expanded", String(!panel.hidden));
  });
  const pill = makePill({ role: "status", "aria-live": "polite", "data-testid": "uia-chat-state" });
  const bar = make("div", { class: "uia-bar uia-chat-bar" });
  bar.append(
    make("span", { class: "uia-title" }, "Chat"),
    pill,
    make("label", { class: "uia-chat-field" }, make("span", { class: "uia-key" }, "Model"), modelPick),
    make("label", { class: "uia-chat-field" }, make("span", { class: "uia-key" }, "Backend"), backendPick),
    more,
  );

  const system = make("textarea", { class: "uia-input", rows: "2", placeholder: "Who it is and how it answers", "data-testid": "uia-chat-system" });
  const numbers = NUMBERS.map(([name, word, bounds]) => {
    const input = make("input", { type: "number", class: "uia-input", placeholder: "default", "data-testid": `uia-chat-${name}`, ...bounds });
    input.addEventListener("change", () => {
      const value = input.value === "" ? null : Number(input.value);
      model.send({ type: "change", settings: { [name]: value } });
    });
    return [name, input, make("label", { class: "uia-chat-number" }, make("span", { class: "uia-key" }, word), input)];
  });
  const panel = make("div", { class: "uia-chat-panel", hidden: "", role: "group", "aria-label": "Settings" });
  panel.append(
    make("label", { class: "uia-chat-system" }, make("span", { class: "uia-key" }, "System prompt"), system),
    make("div", { class: "uia-chat-numbers" }, ...numbers.map(([, , label]) => label)),
  );
  system.addEventListener("change", () => model.send({ type: "change", settings: { system: system.value || null } }));
  modelPick.addEventListener("change", () => model.send({ type: "change", settings: { model: modelPick.value || null } }));
  backendPick.addEventListener("change", () => model.send({ type: "change", settings: { backend: backendPick.value || null } }));

  const log = make("div", { class: "uia-chat-log", role: "log", "aria-live": "off", tabindex: "0", "aria-label": "Conversation", "data-testid": "uia-chat-log" });
  const empty = make("p", { class: "uia-empty uia-key" }, "Nothing was said yet.");
  const settled = make("div");
  const arriving = makeTurn({ role: "assistant" }, "live");
  log.append(empty, settled, arriving.element);

  const notice = make("p", { class: "uia-error", role: "alert", hidden: "", "data-testid": "uia-chat-notice" });
  const input = make("textarea", { class: "uia-input uia-chat-input", rows: "2", placeholder: "Say something", "aria-label": "Your message; Enter sends, Shift and Enter begins a line", "data-testid": "uia-chat-input" });
  const send = make("button", { type: "submit", class: "uia-act uia-main", "data-testid": "uia-chat-send" }, "Send");
  const stop = make("button", { type: "button", class: "uia-stop", hidden: "", "data-testid": "uia-chat-stop" }, "Stop");
  const cancel = actButton("Cancel", { hidden: "", "data-testid": "uia-chat-cancel" }, () => edit(null));
  const form = make("form", { class: "uia-chat-form" });
  form.append(input, make("div", { class: "uia-chat-sends" }, send, stop, cancel));

  const regenerate = actButton("Regenerate", { "data-testid": "uia-chat-regenerate" }, () => model.send({ type: "regenerate" }));
  const change = actButton("Edit last", { "data-testid": "uia-chat-edit" }, () => {
    const said = model.get("turns").findLast((turn) => turn.role === "user");
    if (said) edit(said.text);
  });
  const copy = copyButton("Copy last", { "data-testid": "uia-chat-copy" }, () => model.get("turns").findLast((turn) => turn.role === "assistant")?.text ?? "");
  const clear = actButton("Clear", { "data-testid": "uia-chat-clear" }, () => model.send({ type: "clear" }));
  const toCode = actButton("To a code cell", { "data-testid": "uia-chat-to-code" }, () => ask("code"));
  const toMarkdown = actButton("To a Markdown cell", { "data-testid": "uia-chat-to-markdown" }, () => ask("markdown"));
  const exported = make("span", { class: "uia-key", role: "status", "data-testid": "uia-chat-exported" });
  const foot = make("div", { class: "uia-chat-foot" });
  foot.append(regenerate, change, copy, make("span", { class: "uia-chat-gap" }), exported, toMarkdown, toCode, clear);

  const root = make("section", { class: "uia uia-chat", "aria-label": "Chat", "data-testid": "uia-chat" });
  root.append(bar, panel, log, notice, form, foot);
  el.append(root);

  function makeTurn(turn, kind) {
    const facts = make("span", { class: "uia-facts" });
    const body = make("div", { class: turn.role === "user" ? "uia-chat-said" : "uia-markdown" });
    const error = make("p", { class: "uia-error", hidden: "" });
    const element = make("article", { class: `uia-chat-turn uia-chat-${turn.role}`, "data-testid": `uia-chat-turn-${kind ?? turn.role}` });
    element.append(make("div", { class: "uia-chat-head" }, make("b", {}, NAMES[turn.role]), facts), body, error);
    return {
      element,
      set(shown) {
        element.hidden = false;
        if (shown.role === "user") return write(body, shown.text);
        writeMarkdown(body, shown.blocks);
        const items = textFacts(shown);
        if (shown.tokens !== null) items.push(makeFact("tokens", String(shown.tokens)));
        if (shown.state === "stopped") items.push(makeFact("", "stopped"));
        if (shown.cut) items.push(makeFact("", "cut at the most tokens"));
        facts.replaceChildren(...items);
        error.hidden = !shown.error;
        return write(error, shown.error);
      },
    };
  }

  function drawTurns() {
    const turns = model.get("turns");
    const known = (settled.uiaTurns ??= []);
    const same = turns.findIndex((turn, index) => known[index] !== JSON.stringify(turn));
    const keep = same < 0 ? turns.length : same;
    while (settled.childNodes.length > keep) settled.lastChild.remove();
    known.length = keep;
    for (const turn of turns.slice(keep)) {
      const made = makeTurn(turn);
      made.set(turn);
      settled.append(made.element);
      known.push(JSON.stringify(turn));
    }
  }

  function draw() {
    const near = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_PX;
    const live = model.get("live");
    const running = "state" in live;
    drawTurns();
    if (running) arriving.set(live);
    else arriving.element.hidden = true;
    const turns = model.get("turns");
    empty.hidden = running || turns.length > 0;
    const last = turns.at(-1);
    setPill(pill, running ? live.state : (last?.state ?? "ready"));
    send.hidden = running;
    stop.hidden = !running;
    if (!running) {
      stop.disabled = false;
      write(stop, "Stop");
    }
    write(send, editing ? "Send again" : "Send");
    for (const button of [regenerate, change, copy, clear, toCode, toMarkdown]) button.disabled = running || turns.length === 0;
    notice.hidden = !model.get("notice");
    write(notice, model.get("notice"));
    if (stop.disabled && running) stopAtServer(model, live.request_id, asked);
    if (near) log.scrollTop = log.scrollHeight;
  }

  function fill(select, options, value, first) {
    const values = ["", ...options.map(([each]) => each)];
    if (value && !values.includes(value)) options = [...options, [value, value]];
    const wanted = JSON.stringify([options, first]);
    if (select.dataset.options !== wanted) {
      select.dataset.options = wanted;
      select.replaceChildren(make("option", { value: "" }, first), ...options.map(([each, word]) => make("option", { value: each }, word)));
    }
    if (document.activeElement !== select || select.value !== value) select.value = value;
  }

  function drawSettings() {
    const { models = [], backends = [] } = model.get("options");
    const settings = model.get("settings");
    fill(modelPick, models.map((name) => [name, name]), settings.model ?? "", "default model");
    fill(backendPick, backends.map((each) => [each.id, `${each.name} (${each.status})`]), settings.backend ?? "", "whoever can");
    if (document.activeElement !== system) system.value = settings.system ?? "";
    for (const [name, field] of numbers) if (document.activeElement !== field) field.value = settings[name] ?? "";
  }

  function edit(text) {
    editing = text !== null;
    cancel.hidden = !editing;
    input.value = text ?? "";
    draw();
    input.focus();
  }

  function say() {
    const text = input.value.trim();
    if (!text || "state" in model.get("live")) return;
    model.send({ type: editing ? "edit" : "send", text });
    editing = false;
    cancel.hidden = true;
    input.value = "";
    log.scrollTop = log.scrollHeight;
  }

  // Where the page is JupyterLab the new cell goes below this one; elsewhere it is copied, to be pasted.
  let wanted = null;
  function ask(kind) {
    wanted = kind;
    model.send({ type: "export" });
  }
  // A chat of its own has its mark in the output; one in a dashboard is found by where it stands on the page.
  function placeOf(cells) {
    const marked = cells.findIndex((cell) => JSON.stringify(cell.toJSON().outputs ?? "").includes(model.get("mark")));
    const shown = Number(root.closest("[data-windowed-list-index]")?.dataset.windowedListIndex ?? cells.length - 1);
    return marked < 0 ? shown : marked;
  }
  async function put(message) {
    if (message?.type !== "exported" || wanted === null) return;
    const kind = wanted;
    wanted = null;
    const source = model.get("exports")[kind];
    const shared = model.widget_manager?.context?.model?.sharedModel;
    if (shared?.insertCell) {
      shared.insertCell(placeOf(shared.cells) + 1, { cell_type: kind, source, metadata: {} });
      write(exported, "In the cell below");
    } else {
      write(exported, (await copyText(source)) ? "Copied: paste it into a new cell" : "It could not be copied");
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    say();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && editing) edit(null);
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    say();
  });
  stop.addEventListener("click", () => {
    stop.disabled = true;
    write(stop, "Stopping…");
    stopAtServer(model, model.get("live").request_id, asked);
    model.send({ type: "stop" });
  });

  const drawAll = () => {
    draw();
    drawSettings();
  };
  model.on("change", drawAll);
  model.on("msg:custom", put);
  arriving.element.hidden = true;
  drawAll();
  model.send({ type: "options" });
  return () => {
    model.off("change", drawAll);
    model.off("msg:custom", put);
  };
}

// The transcript below is for who opens the notebook without a kernel; here the turns are in the chat.
function initialize({ model }) {
  return dressStills(model.get("mark"), (still) => {
    still.style.display = "none";
    return () => {
      still.style.display = "";
    };
  });
}

export default { initialize, render };
