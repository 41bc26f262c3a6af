// One generation while it runs: state, figures, Stop, text.

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
  const root = make("section", { class: "uia uia-generation", "aria-label": "Generation" });
  root.append(make("div", { class: "uia-bar" }, pill, facts, stop), text, error);
  el.append(root);

  const began = performance.now();
  let stopping = false;
  let asked = null;

  function fact(name, value, unit = "") {
    const item = make("span", { class: "uia-fact" });
    item.append(make("span", { class: "uia-key" }, name), " ", make("span", {}, value));
    if (unit) item.append(make("span", { class: "uia-unit" }, ` ${unit}`));
    return item;
  }

  function drawFacts() {
    const items = [];
    const first = duration(model.get("first_token_s") === null ? null : model.get("first_token_s") * 1000);
    if (first) items.push(fact("first token", ...first));
    else if (!ENDED.has(model.get("state"))) {
      items.push(fact("elapsed", ((performance.now() - began) / 1000).toFixed(1), "s"));
    }
    const speed = model.get("tokens_per_s");
    if (speed !== null) items.push(fact("speed", rate(speed), "tok/s"));
    if (model.get("backend")) items.push(fact("backend", model.get("backend")));
    if (model.get("model")) items.push(fact("model", model.get("model")));
    facts.replaceChildren(...items);
  }

  // Appending keeps the nodes, and with them a reader's selection.
  function drawText() {
    const whole = model.get("text");
    const node = text.firstChild ?? text.appendChild(document.createTextNode(""));
    if (whole.startsWith(node.data)) node.appendData(whole.slice(node.data.length));
    else node.data = whole;
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
    askToStop();
  }

  // The id of a request is known once its server has answered; an earlier wish is kept until then.
  function askToStop() {
    const id = model.get("request_id");
    if (!stopping || !id || asked === id || !model.get("direct") || !pageServer()) return;
    asked = id;
    askServer("DELETE", `uia/requests/${encodeURIComponent(id)}`).catch(() => {});
  }

  stop.addEventListener("click", () => {
    stopping = true;
    stop.disabled = true;
    write(stop, "Stopping…");
    askToStop();
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

export default { render };
