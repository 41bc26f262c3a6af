// Shared by the widgets of a page: one WebSocket to the page's own server, and requests to it. No dependencies
// and no build step; on a page of your own: import { connectLive } from "./live.js".
// Each widget is a module of its own, so what is shared is kept on the page and found by this symbol.
const LIVE = Symbol.for("uia_lab.live.v3");

const PING_MS = 20_000;
const SILENT_MS = 45_000;
const HIDDEN_MS = 5_000;
const LINGER_MS = 5_000;
const LONGEST_MS = 30_000;
const ANSWER_MS = 15_000;

/** Address of the page's Jupyter server; null outside Jupyter's own pages. */
function pageServer() {
  const element = document.getElementById("jupyter-config-data");
  if (!element) return null;
  try {
    const base = JSON.parse(element.textContent).baseUrl;
    return base ? new URL(base, location.href) : null;
  } catch {
    return null;
  }
}

/** A request to the page's server with the proof that it comes from the page; a body goes as JSON. */
function askServer(method, path, body) {
  const cookie = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/);
  return fetch(new URL(path, pageServer()), {
    method,
    credentials: "same-origin",
    headers: {
      ...(cookie ? { "X-XSRFToken": decodeURIComponent(cookie[1]) } : {}),
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
    },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
}

/** The page's shared connection. */
function liveOfPage() {
  return (globalThis[LIVE] ??= connectLive());
}

/**
 * One WebSocket to a uia_lab server, opened when somebody needs it and again whenever it breaks.
 *
 * Options: `url`, the server's address with its scheme and port (the page's own Jupyter server when absent); `token`, a key of it (Jupyter's cookie when absent); `WebSocket`, the class to use.
 *
 * - `on(topic, callback)` calls back with `(data, sequence)`: a snapshot of "inference", "status", "backend" or
 *   "queue", then each change, and after every reconnection a fresh snapshot. Returns what ends it.
 * - `infer(request, onChunk)` asks for an answer: `request` has the fields of an `inference` message, `onChunk`
 *   gets each `inference_chunk`. Returns a promise of the last message, with a method `cancel()`. A failed,
 *   cancelled or cut off request rejects with an Error that has `code`.
 * - `ask(type, fields)` sends "status", "history" or "ping" and promises the answer; one that does not come within
 *   15 s rejects with the code "no_answer".
 * - `subscribe(callback)` calls back with every change of `seen`, and once now: `state` is "connecting", "live",
 *   "reconnecting" or "unavailable" (it has never answered), `instance` the server's id, `instances` those it has
 *   had since the page was opened (a restarted server has a new one), `report` its status.
 * - `close()` ends it all.
 */
function connectLive(options = {}) {
  const Socket = options.WebSocket ?? globalThis.WebSocket;
  const seen = { state: "connecting", instance: null, instances: new Set(), report: null };
  const watchers = new Set();
  // Topic to its listeners and newest state.
  const topics = new Map();
  // Label to an answer under way.
  const answers = new Map();
  // Type of the answer to those who wait for one, in order.
  const questions = new Map([["status", []], ["history", []], ["pong", []]]);
  let socket = null;
  let greeted = false;
  let failures = 0;
  let retry = 0;
  let hiding = 0;
  let resting = 0;
  let heard = 0;
  let beat = 0;
  let labels = 0;

  const asked = () => [...questions.values()].some((waiting) => waiting.some((each) => !each.over));
  const wanted = () => watchers.size + topics.size + answers.size > 0 || asked();
  const hidden = () => globalThis.document?.hidden ?? false;

  function address() {
    const base = options.url ? new URL(options.url.replace(/\/*$/, "/")) : pageServer();
    if (!base) return null;
    const path = options.url ? "ws/" : "uia/ws/";
    const url = new URL(`${path}page-${Math.random().toString(36).slice(2, 10)}`, base);
    url.protocol = url.protocol.replace("http", "ws");
    if (options.token) url.searchParams.set("token", options.token);
    return url;
  }

  function tell(change) {
    Object.assign(seen, change);
    for (const watcher of [...watchers]) watcher(seen);
  }

  function send(message) {
    if (greeted) socket.send(JSON.stringify(message));
  }

  function failure(message, code) {
    return Object.assign(new Error(message), { code });
  }

  function open() {
    if (socket || !wanted()) return;
    clearTimeout(retry);
    const url = address();
    if (!url) return;
    const mine = new Socket(url);
    socket = mine;
    heard = Date.now();
    mine.onmessage = (event) => {
      if (socket !== mine) return;
      heard = Date.now();
      take(JSON.parse(event.data));
    };
    // A WebSocket says no more than that it failed; its close follows and is enough.
    mine.onerror = () => {};
    mine.onclose = () => {
      if (socket === mine) lost();
    };
    clearInterval(beat);
    beat = setInterval(() => {
      if (Date.now() - heard > SILENT_MS) {
        // A dead line does not answer the closing either.
        mine.close();
        if (socket === mine) lost();
      } else send({ type: "ping" });
    }, PING_MS);
  }

  function take(message) {
    switch (message.type) {
      case "connection":
        failures = 0;
        greeted = true;
        if (topics.size) send({ type: "subscribe", topics: [...topics.keys()] });
        for (const [label, answer] of answers) send({ ...answer.request, type: "inference", request_id: label });
        for (const waiting of questions.values()) for (const each of waiting) send(each.message);
        seen.instances.add(message.instance_id);
        tell({ state: "live", instance: message.instance_id });
        break;
      case "update": {
        const topic = topics.get(message.topic);
        if (!topic) break;
        topic.state = [message.data, message.sequence];
        for (const listener of [...topic.listeners]) listener(message.data, message.sequence);
        break;
      }
      case "status":
      case "history":
      case "pong":
        questions.get(message.type).shift()?.resolve(message);
        break;
      case "inference_started":
        if (answers.has(message.request_id)) answers.get(message.request_id).started = true;
        break;
      case "inference_chunk":
        answers.get(message.request_id)?.onChunk?.(message);
        break;
      case "inference_result":
      case "inference_complete":
        answers.get(message.request_id)?.resolve(message);
        break;
      case "inference_cancelled":
        answers.get(message.request_id)?.reject(failure("the request was cancelled", "cancelled"));
        break;
      case "inference_error":
      case "error":
        answers.get(message.request_id)?.reject(failure(message.error ?? message.message, message.code));
        break;
    }
  }

  function lost() {
    socket = null;
    clearInterval(beat);
    // Nothing answers any more what was asked in vain: the places in the line that were kept for it go.
    for (const [type, waiting] of questions) questions.set(type, waiting.filter((each) => !each.over));
    // An answer cannot go on over another connection; who asks again may be charged twice, so nobody is asked.
    for (const answer of greeted ? [...answers.values()] : []) {
      answer.reject(failure("the connection to the server was lost", "connection_lost"));
    }
    greeted = false;
    if (!wanted() || hidden()) return;
    failures += 1;
    tell({ state: seen.instance ? "reconnecting" : failures > 1 ? "unavailable" : "connecting" });
    // Full jitter: many pages that lost one server must not come back in step.
    const longest = Math.min(LONGEST_MS, 500 * 2 ** failures);
    retry = setTimeout(open, 200 + Math.random() * longest);
  }

  function drop() {
    clearTimeout(retry);
    clearTimeout(resting);
    clearInterval(beat);
    for (const [type, waiting] of questions) questions.set(type, waiting.filter((each) => !each.over));
    const mine = socket;
    socket = null;
    greeted = false;
    mine?.close();
  }

  // Whoever comes a moment later finds the connection still open.
  function rest() {
    clearTimeout(resting);
    if (!wanted()) resting = setTimeout(() => wanted() || drop(), LINGER_MS);
  }

  globalThis.document?.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (!hidden()) open();
    else {
      hiding = setTimeout(() => {
        if (!answers.size) drop();
      }, HIDDEN_MS);
    }
  });

  const live = {
    seen,

    on(name, listener) {
      let topic = topics.get(name);
      if (!topic) {
        topic = { listeners: new Set(), state: null };
        topics.set(name, topic);
        send({ type: "subscribe", topics: [name] });
      }
      // A wrapper, so that one function may listen twice.
      const mine = (...state) => listener(...state);
      topic.listeners.add(mine);
      if (topic.state) mine(...topic.state);
      open();
      return () => {
        topic.listeners.delete(mine);
        if (topic.listeners.size || topics.get(name) !== topic) return;
        topics.delete(name);
        send({ type: "unsubscribe", topics: [name] });
        rest();
      };
    },

    infer(request, onChunk) {
      const label = `live-${(labels += 1)}`;
      const promise = new Promise((resolve, reject) => {
        const ended = (settle) => (value) => {
          answers.delete(label);
          settle(value);
          rest();
        };
        answers.set(label, { request, onChunk, resolve: ended(resolve), reject: ended(reject) });
      });
      send({ ...request, type: "inference", request_id: label });
      open();
      return Object.assign(promise, {
        cancel() {
          if (greeted) send({ type: "cancel", request_id: label });
          else answers.get(label)?.reject(failure("the request was cancelled", "cancelled"));
        },
      });
    },

    ask(type, fields = {}) {
      const name = type === "ping" ? "pong" : type;
      if (!questions.has(name)) return Promise.reject(failure(`${type} is no question`, "bad_request"));
      const message = { ...fields, type };
      const promise = new Promise((resolve, reject) => {
        // Answers come in the order of the questions, so one that was given up keeps its place in the line.
        const ended = (settle) => (value) => {
          clearTimeout(deadline);
          question.over = true;
          settle(value);
          rest();
        };
        const question = { message, over: false, resolve: ended(resolve), reject: ended(reject) };
        const late = () => reject(failure(`no answer to ${type} within ${ANSWER_MS / 1000} s`, "no_answer"));
        const deadline = setTimeout(ended(late), ANSWER_MS);
        questions.get(name).push(question);
      });
      send(message);
      open();
      return promise;
    },

    subscribe(watcher) {
      watchers.add(watcher);
      watcher(seen);
      const leave = live.on("status", (report) => tell({ report }));
      return () => {
        watchers.delete(watcher);
        leave();
        rest();
      };
    },

    close() {
      for (const answer of [...answers.values()]) {
        answer.reject(failure("the connection was closed here", "connection_lost"));
      }
      watchers.clear();
      topics.clear();
      for (const waiting of questions.values()) {
        for (const each of waiting.splice(0)) each.reject(failure("the connection was closed here", "connection_lost"));
      }
      drop();
    },
  };
  return live;
}

export { connectLive, liveOfPage };
