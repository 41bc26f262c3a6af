// One generation: while it runs state, figures, Stop and the text; afterwards the buttons below its still form.

// How long a stop may take before the reader is told what else to do.
const HINT_MS = 3_000;
const ENDED = new Set(["done", "stopped", "failed"]);

function render({ model, el }) {
  const pill = makePill({ role: "status", "aria-live": "polite", "data-testid": "uia-generation-state" });
  const facts = make("span", { class: "uia-facts", "data-testid": "uia-generation-facts" });
  const stop = make(
    "button",
    { type: "button", class: "uia-stop", "data-testid": "uia-generation-stop", title: "End this request" },
    "Stop",
  );
  const text = make("div", { class: "uia-text", "data-testid": "uia-generation-text" });
  const error = make("p", { class: "uia-error", role: "alert", hidden: "" });
  const root = make("section", {
    class: "uia uia-generation",
    "aria-label": "Generation",
    "data-testid": "uia-generation-live",
  });
  root.append(make("div", { class: "uia-bar" }, pill, facts, stop), text, error);
  el.append(root);

  const began = performance.now();
  const asked = new Set();
  let stopping = false;

  function drawFacts() {
    const shown = Object.fromEntries(["first_token_s", "tokens_per_s", "backend"].map((name) => [name, model.get(name)]));
    const items = textFacts(shown);
    if (shown.first_token_s === null && !ENDED.has(model.get("state"))) {
      items.unshift(makeFact("elapsed", ((performance.now() - began) / 1000).toFixed(1), "s"));
    }
    if (model.get("model")) items.push(makeFact("model", model.get("model")));
    facts.replaceChildren(...items);
  }

  // The text in pieces, with a sign and a note in the margin wherever it went on at another backend.
  function drawText() {
    const whole = model.get("text");
    const turns = model.get("turns");
    root.classList.toggle("uia-turned", turns.length > 0);
    while (text.childNodes.length > turns.length * 2 + 1) text.lastChild.remove();
    if (!text.firstChild) text.append(document.createTextNode(""));
    turns.forEach((turn, index) => {
      if (!text.childNodes[index * 2 + 1]) text.append(turnMark(turn), document.createTextNode(""));
    });
    const edges = [0, ...turns.map((turn) => turn.offset), whole.length];
    for (let index = 0; index <= turns.length; index += 1) {
      writeText(text.childNodes[index * 2], whole.slice(edges[index], edges[index + 1]));
    }
  }

  function turnMark(turn) {
    const at = duration(turn.at_s * 1000).join(" ");
    const note = make(
      "span",
      { class: "uia-note", title: turn.reason },
      make("b", {}, `${turn.from_id} → ${turn.to_id}`),
      make("span", {}, ` after ${at}: ${turn.reason || "it broke off"}`),
    );
    const sign = make("span", { class: "uia-turn-sign", "aria-hidden": "true" }, "⇄");
    return make("span", { class: "uia-turn", "data-testid": "uia-generation-turn" }, sign, note);
  }

  function draw() {
    const state = model.get("state");
    root.dataset.state = state;
    setPill(pill, state);
    drawFacts();
    drawText();
    stop.hidden = ENDED.has(state);
    if (model.get("error")) {
      error.hidden = false;
      write(error, model.get("error"));
    }
    // The id of a request is known once its server has answered; an earlier wish is kept until then.
    if (stopping) stopAtServer(model, model.get("request_id"), asked);
  }

  stop.addEventListener("click", () => {
    stopping = true;
    stop.disabled = true;
    write(stop, "Stopping…");
    stopAtServer(model, model.get("request_id"), asked);
    // The kernel hears it too, which is the only way in local mode and to a server that is not the page's.
    model.send({ type: "stop" });
    setTimeout(() => {
      if (ENDED.has(model.get("state"))) return;
      error.hidden = false;
      write(error, "The kernel is busy in this cell and cannot hear Stop: interrupt it to end the request.");
    }, HINT_MS);
  });

  model.on("change", draw);
  const clock = setInterval(() => {
    if (model.get("state") === "waiting") drawFacts();
  }, 100);
  draw();
  return () => {
    clearInterval(clock);
    model.off("change", draw);
  };
}

/** The buttons below a still form. */
function makeTools(model) {
  const choices = make("div", { class: "uia-choices", hidden: "", "data-testid": "uia-generation-places" });
  const notice = make("span", { class: "uia-key", role: "status" });
  const elsewhere = actButton(
    "Ask elsewhere",
    { "aria-expanded": "false", "data-testid": "uia-generation-elsewhere", title: "The same question to another backend" },
    () => {
      choices.hidden = !choices.hidden;
      elsewhere.setAttribute("aria-expanded", String(!choices.hidden));
      if (!choices.hidden) model.send({ type: "places" });
    },
  );

  function choice(word, backend, status, attributes) {
    const button = actButton(word, { ...attributes, "data-testid": "uia-generation-place" }, () => {
      for (const each of choices.querySelectorAll("button")) each.disabled = true;
      write(notice, "Asking…");
      model.send({ type: "retry", backend });
    });
    if (status) {
      const pill = makePill();
      setPill(pill, status);
      button.append(" ", pill);
    }
    return button;
  }

  function draw() {
    const places = model.get("places");
    const items = (places ?? []).map((place) =>
      choice(place.tried ? `${place.name} (tried)` : place.name, place.id, place.status, { "data-backend": place.id }),
    );
    choices.replaceChildren(choice("Any other backend", null, null, {}), ...items);
    write(notice, model.get("notice"));
  }

  const tools = make("div", { class: "uia uia-tools", role: "group", "aria-label": "This answer" });
  tools.append(
    elsewhere,
    copyButton("Copy", { "data-testid": "uia-generation-copy" }, () => model.get("text")),
    copyButton(
      "Copy as code",
      { "data-testid": "uia-generation-code", title: "A script for the openai package; no key is in it" },
      () => model.get("code"),
    ),
    notice,
    choices,
  );
  model.on("change:places", draw);
  model.on("change:notice", draw);
  draw();
  return tools;
}

function initialize({ model }) {
  return dressStills(model.get("mark"), (still) => {
    const tools = makeTools(model);
    still.append(tools);
    return () => tools.remove();
  });
}

export default { initialize, render };
