// A widget's way to its service: the page's own connection where the page's server is that service, the kernel
// where it is not.

const RENEW_MS = 5_000;
const PULL_MS = 1_000;
const KERNEL_MS = 20_000;
const QUIET_MS = 12_000;
const KEPT_SAMPLES = 900;

// Methods of the kernel's transport and the doors that do the same.
const DOORS = {
  backend: (id) => ["GET", `backends/${encodeURIComponent(id)}`],
  change_backend: (id, fields) => ["PATCH", `backends/${encodeURIComponent(id)}`, fields],
  probe_backend: (id) => ["POST", `backends/${encodeURIComponent(id)}/probe`],
  strategies: () => ["GET", "strategy"],
  set_strategy: (name) => ["PUT", "strategy", { name }],
  explain: (fields) => ["POST", "explain", fields],
  requests: (limit) => ["GET", `requests?limit=${limit}`],
  request: (id) => ["GET", `requests/${encodeURIComponent(id)}`],
};

/** The last quarter of an hour as it is told piece by piece: `samples` and `transitions`, oldest first. */
function makeTrace() {
  const marks = new Set();
  const trace = { instance: null, samples: [], transitions: [], taken: 0 };

  // Numbers begin anew with another instance of the server: nothing of the one before fits then.
  trace.take = (told) => {
    if (trace.instance !== told.instance_id) {
      const others = trace.instance !== null && trace.taken > 0;
      Object.assign(trace, { instance: told.instance_id, samples: [], transitions: [], taken: 0 });
      marks.clear();
      if (others) return;
    }
    trace.samples.push(...told.samples.filter((sample) => sample.number > trace.taken));
    trace.samples.splice(0, trace.samples.length - KEPT_SAMPLES);
    trace.taken = told.taken;
    for (const change of told.transitions) {
      const mark = `${change.backend_id} ${change.status} ${change.routable} ${Math.round(change.at)}`;
      if (!marks.has(mark)) {
        marks.add(mark);
        trace.transitions.push(change);
      }
    }
    const oldest = trace.samples[0]?.at ?? 0;
    while (trace.transitions.length && trace.transitions[0].at < oldest - 1) trace.transitions.shift();
  };
  return trace;
}

/** The trace of a live connection, asked for once a second while somebody looks; shared by all widgets. */
function traceOf(live) {
  if (live.trace) return live.trace;
  const trace = (live.trace = makeTrace());
  const listeners = new Set();
  let timer = 0;
  let asking = false;

  async function pull() {
    if (asking || document.hidden || live.seen.state !== "live") return;
    asking = true;
    try {
      trace.take(await live.ask("history", { after: trace.taken }));
      for (const listener of [...listeners]) listener();
    } catch {
      // A server that knows no history, or has none now: what is shown stays.
    } finally {
      asking = false;
    }
  }

  trace.subscribe = (listener) => {
    listeners.add(listener);
    timer ||= setInterval(pull, PULL_MS);
    pull();
    return () => {
      listeners.delete(listener);
      if (listeners.size) return;
      clearInterval(timer);
      timer = 0;
    };
  };
  return trace;
}

/**
 * The service of a widget.
 *
 * `changed` is called whenever there is something new to draw, never twice within PAINT_MS and not while the page
 * is hidden. What is given back has `state` for the pill, the newest `report`, the `trace` of the last quarter of
 * an hour (with `history`), `ask(name, ...arguments)` for the methods in DOORS, and `close()`.
 */
function serviceOf(model, changed, { history = false } = {}) {
  const mine = Math.random().toString(36).slice(2);
  const asked = new Map();
  const painter = makePainter(() => document.hidden || changed());
  const service = { state: "connecting", report: model.get("report"), trace: makeTrace(), ask, close };
  let fromKernel = false;
  let trouble = false;
  let questions = 0;
  let heard = 0;
  let leaveTrace = null;

  function set(state) {
    service.state = state;
    painter();
  }

  function poll(whole = false) {
    if (fromKernel && !document.hidden) model.send({ type: "poll", whole });
  }

  function useKernel() {
    if (!fromKernel) {
      fromKernel = true;
      heard = Date.now();
      leaveTrace?.();
      leaveTrace = null;
      service.trace = makeTrace();
      poll(true);
    }
    set(trouble ? "reconnecting" : "from kernel");
  }

  function useLive(seen) {
    fromKernel = false;
    service.report = seen.report ?? service.report;
    if (history && !leaveTrace) {
      service.trace = traceOf(liveOfPage());
      leaveTrace = service.trace.subscribe(painter);
    }
    set(seen.state === "live" ? "live" : "reconnecting");
  }

  // The page's server may be another one than the service: then only the kernel knows it. A server that was
  // restarted is still the same service.
  function heardLive(seen) {
    if (seen.instances.has(model.get("instance_id"))) useLive(seen);
    else if (seen.instance !== null || seen.state === "unavailable") useKernel();
  }

  function heardReport() {
    trouble = false;
    heard = Date.now();
    if (!fromKernel) return;
    service.report = model.get("report");
    set("from kernel");
  }

  // A kernel that is busy in a cell, dead, or of another day: what is shown is the last that was known.
  function renewed() {
    poll();
    if (document.hidden) heard = Date.now();
    else if (fromKernel && Date.now() - heard > QUIET_MS) set("no answer");
  }

  function heardMessage(message) {
    heard = Date.now();
    if (message?.type === "trouble") {
      trouble = true;
      if (fromKernel) set("reconnecting");
    } else if (message?.type === "history" && fromKernel) {
      service.trace.take(message.history);
      painter();
    } else if (message?.type === "answer") {
      asked.get(message.id)?.(message);
    }
  }

  async function ask(name, ...parameters) {
    if (fromKernel || !pageServer()) return askKernel(name, parameters);
    const [method, path, body] = DOORS[name](...parameters);
    const response = await askServer(method, `uia/${path}`, body);
    const told = await response.json().catch(() => null);
    if (!response.ok) {
      throw new Error(told?.error?.message ?? told?.message ?? `the server answered with status ${response.status}`);
    }
    return told;
  }

  function askKernel(name, parameters) {
    const id = `${mine}-${(questions += 1)}`;
    return new Promise((resolve, reject) => {
      const late = () => reject(new Error("the kernel does not answer: it is busy in a cell, or gone"));
      const deadline = setTimeout(late, KERNEL_MS);
      asked.set(id, (answer) => {
        clearTimeout(deadline);
        if (answer.error) reject(new Error(answer.error));
        else resolve(answer.value);
      });
      model.send({ type: "ask", id, name, arguments: parameters });
    }).finally(() => asked.delete(id));
  }

  function shownAgain() {
    if (document.hidden) return;
    poll();
    painter();
  }

  model.on("change:report", heardReport);
  model.on("msg:custom", heardMessage);
  document.addEventListener("visibilitychange", shownAgain);
  const renew = setInterval(renewed, RENEW_MS);
  const leave = model.get("direct") && pageServer() ? liveOfPage().subscribe(heardLive) : null;
  if (!leave) useKernel();

  function close() {
    leave?.();
    leaveTrace?.();
    painter.end();
    clearInterval(renew);
    document.removeEventListener("visibilitychange", shownAgain);
    model.off("change:report", heardReport);
    model.off("msg:custom", heardMessage);
  }

  return service;
}
