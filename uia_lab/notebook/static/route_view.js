// Why a backend serves: of the requests that ran, and of one that might.

const LISTED = 25;
const RENEW_LIST_MS = 1_500;

const TASKS = ["text-generation", "text-embedding", "text-classification", "summarization", "translation",
  "question-answering", "fill-mask", "token-classification", "zero-shot-classification", "image-classification",
  "audio-transcription", "image-generation"];

function headsOf(columns) {
  return make("thead", {}, make("tr", {},
    ...columns.map(([text, kind]) => make("th", { scope: "col", class: kind || null }, text))));
}

/** The sentence that a decision comes down to. */
function sentenceOf(decision) {
  const model = decision.model ? `model ${decision.model}` : "any model";
  if (!decision.winner) return `Nobody can serve ${decision.task} with ${model} now.`;
  const among = decision.eligible === 1 ? "the only backend that could" : `one of ${decision.eligible} that could`;
  return `${decision.winner} serves ${decision.task} with ${model}: ${among}, chosen by ${decision.strategy}.`;
}

function verdictOf(candidate, decision) {
  if (candidate.backend_id === decision.winner) return "serves";
  return candidate.kept ? "could serve" : "cannot";
}

function render({ model, el }) {
  const service = serviceOf(model, paint);
  const shown = model.get("shown");
  const pill = makePill({ role: "status", "aria-live": "polite", "data-testid": "uia-route-connection" });
  const notice = makeNotice({ "data-testid": "uia-route-notice" });
  const [taskLabel, task] = makeSelect("Task", TASKS, { "data-testid": "uia-route-task" });
  const models = make("datalist", { id: `uia-${Math.random().toString(36).slice(2)}` });
  const modelInput = make("input", {
    class: "uia-input", type: "text", list: models.id, placeholder: "default", "data-testid": "uia-route-model",
  });
  const explain = makeButton("Explain", { "data-testid": "uia-route-explain", title: "Who would serve it now; nothing runs" });
  const listBody = make("tbody");
  const list = make("table", { class: "uia-table uia-fixed uia-requests", "data-testid": "uia-route-requests" },
    make("caption", { class: "uia-hidden" }, "The last requests"),
    headsOf([["Time", "uia-c-time"], ["Task", "uia-roomy"], ["Model", ""], ["Backend", ""], ["Outcome", "uia-c-outcome"],
      ["Latency", "uia-num uia-c-count"], ["Tokens", "uia-num uia-c-count uia-roomy"]]),
    listBody);
  const none = make("p", { class: "uia-empty" }, "No request has been served yet.");
  const sentence = make("p", { class: "uia-sentence", "aria-live": "polite", "data-testid": "uia-route-sentence" });
  const candidates = make("tbody");
  const candidateTable = make("table", { class: "uia-table uia-fixed uia-candidates", "data-testid": "uia-route-candidates" },
    make("caption", { class: "uia-hidden" }, "The candidates"),
    headsOf([["Candidate", ""], ["Verdict", "uia-c-verdict"], ["Score", "uia-num uia-c-score"], ["Why", ""]]), candidates);
  const attempts = make("ol", { class: "uia-log", tabindex: "0", "aria-label": "Attempts", "data-testid": "uia-route-attempts" });
  const attempted = make("section", { class: "uia-attempts", hidden: "" }, make("h4", { class: "uia-key" }, "Attempts"), attempts);
  const root = make("section", { class: "uia uia-route", "data-testid": "uia-route", "aria-label": "Why this backend" });
  root.append(
    make("div", { class: "uia-bar" }, make("strong", { class: "uia-title" }, "Why this backend"),
      make("span", { class: "uia-space" }), pill),
    make("form", { class: "uia-tools" }, make("span", {}, "Who would serve"), taskLabel,
      make("label", { class: "uia-label" }, make("span", { class: "uia-key" }, "Model"), modelInput), models, explain),
    make("div", { class: "uia-scrolled", tabindex: "0", role: "region", "aria-label": "The last requests" }, list, none),
    sentence, candidateTable, attempted, notice,
  );
  el.append(root);
  let chosen = null;
  let total = null;
  let listing = 0;

  function drawDecision(decision, tried = []) {
    write(sentence, sentenceOf(decision));
    const known = new Map((service.report?.backends ?? []).map((backend) => [backend.id, backend]));
    const scores = decision.candidates.map((candidate) => candidate.score).filter((score) => score !== null);
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    const rank = (candidate) => ["serves", "could serve", "cannot"].indexOf(verdictOf(candidate, decision));
    const ordered = [...decision.candidates].sort((one, other) => rank(one) - rank(other) ||
      (one.score ?? Infinity) - (other.score ?? Infinity));
    candidates.replaceChildren(...ordered.map((candidate) => {
      const verdict = makePill();
      setPill(verdict, verdictOf(candidate, decision));
      const name = make("th", { scope: "row", title: candidate.backend_id },
        make("span", { class: "uia-name uia-cut" }, known.get(candidate.backend_id)?.name ?? candidate.backend_id),
        make("span", { class: "uia-sub uia-cut" }, candidate.backend_id));
      const score = make("td", { class: "uia-num" });
      if (candidate.score === null || candidate.score === undefined) score.append("–");
      else {
        // The shortest bar is the best, as the lowest score is; where all are alike each is full.
        const part = high > low ? 0.12 + (0.88 * (candidate.score - low)) / (high - low) : 1;
        score.append(make("span", {}, Number(candidate.score.toPrecision(3)).toString()),
          make("span", { class: "uia-meter", "aria-hidden": "true" },
            make("span", { class: "uia-meter-fill", style: `width:${Math.round(part * 100)}%` })));
      }
      const preferred = candidate.tier ? `preference ${candidate.tier + 1}` : "";
      const alike = candidate.score === low ? "the same score: a tie goes to one at random" : "a higher score";
      const reason = candidate.reason || preferred ||
        (candidate.backend_id !== decision.winner ? alike : decision.eligible === 1 ? "the only one that could" : "the best score");
      return make("tr", { "data-backend": candidate.backend_id }, name, make("td", {}, verdict), score,
        make("td", { class: "uia-why" }, reason));
    }));
    candidateTable.hidden = !ordered.length;
    attempted.hidden = !tried.length;
    attempts.replaceChildren(...tried.map((attempt) => {
      const state = makePill();
      setPill(state, attempt.outcome ?? "unknown");
      return make("li", {}, make("span", { class: "uia-name" }, attempt.backend_id), state,
        make("span", { class: "uia-said" },
          [duration(attempt.latency_ms)?.join(" "), attempt.message].filter(Boolean).join(" · ")));
    }));
  }

  async function openRequest(id) {
    chosen = id;
    markChosen();
    const told = await service.ask("request", id).catch((error) => notice.say(error.message, "bad"));
    if (!told || chosen !== id) return;
    notice.say("");
    if (told.decision?.candidates) drawDecision(told.decision, told.attempts);
    else {
      write(sentence, told.message ?? "No backend was chosen for this request.");
      candidateTable.hidden = true;
      attempted.hidden = true;
    }
  }

  function markChosen() {
    for (const row of listBody.rows) {
      row.classList.toggle("uia-open", row.dataset.request === chosen);
      put(row.querySelector("button"), "aria-pressed", row.dataset.request === chosen);
    }
  }

  function makeRow() {
    const row = make("tr", { "data-testid": "uia-route-request" }, make("th", { scope: "row" }));
    for (const kind of ["uia-roomy", "", "", "", "uia-num", "uia-num uia-roomy"]) {
      row.append(make("td", { class: kind || null }, make("span", { class: kind.includes("num") ? "" : "uia-cut" })));
    }
    const opener = make("button", { type: "button", class: "uia-link", "data-testid": "uia-route-open" });
    opener.addEventListener("click", () => openRequest(row.dataset.request));
    row.cells[0].append(opener);
    row.cells[4].replaceChildren(makePill());
    return row;
  }

  // Rows are filled anew and not made anew: what has the focus keeps it.
  async function loadRequests() {
    listing = performance.now();
    const told = await service.ask("requests", LISTED).catch(() => null);
    if (!told) return;
    none.hidden = told.requests.length > 0;
    list.hidden = !told.requests.length;
    while (listBody.rows.length > told.requests.length) listBody.lastChild.remove();
    told.requests.forEach((request, index) => {
      const row = listBody.rows[index] ?? listBody.appendChild(makeRow());
      const [time, kind, name, backend, outcome, latency, tokens] = row.cells;
      row.dataset.request = request.id;
      write(time.firstChild, timeOfDay(request.began_at));
      write(kind.firstChild, request.task);
      write(name.firstChild, request.model ?? "default");
      put(name, "title", request.model ?? "default");
      write(backend.firstChild, request.backend_id ?? "–");
      put(backend, "title", request.backend_id ?? "");
      setPill(outcome.firstChild, request.outcome || "running");
      setNumber(latency, ...(duration(request.latency_s * 1000) ?? [null, ""]), 1.7);
      setNumber(tokens, request.usage?.total_tokens ?? (request.input_tokens ?? 0) + (request.output_tokens ?? 0));
    });
    markChosen();
  }

  function paint() {
    setPill(pill, service.state);
    root.classList.toggle("uia-stale", isStale(service.state));
    const report = service.report ?? {};
    const names = [...new Set((report.backends ?? []).flatMap((backend) => backend.models ?? []))].sort();
    if (models.dataset.names !== names.join()) {
      models.dataset.names = names.join();
      models.replaceChildren(...names.map((value) => make("option", { value })));
    }
    const count = `${report.total_requests} ${report.in_flight}`;
    if (count !== total && performance.now() - listing > RENEW_LIST_MS) {
      total = count;
      loadRequests();
    }
  }

  root.querySelector("form").addEventListener("submit", (submitted) => submitted.preventDefault());
  explain.type = "submit";
  root.querySelector("form").addEventListener("submit", async () => {
    const fields = { task: task.value, ...(modelInput.value.trim() ? { model: modelInput.value.trim() } : {}) };
    const decision = await act(explain, notice, "", () => service.ask("explain", fields));
    if (!decision) return;
    chosen = null;
    markChosen();
    drawDecision(decision);
  });
  const renew = setInterval(() => document.hidden || paint(), RENEW_LIST_MS);

  if (shown?.decision) {
    drawDecision(shown.decision, shown.attempts);
    if (shown.decision.task) task.value = shown.decision.task;
    modelInput.value = shown.decision.model ?? "";
  } else {
    write(sentence, "Choose a request to see why it was served where it was, or ask who would serve one.");
    candidateTable.hidden = true;
  }
  setPill(pill, service.state);
  return () => {
    clearInterval(renew);
    service.close();
  };
}

export default { render };
