// Shared by the widgets of a page: one WebSocket to the page's own server, and requests to it.
// Each widget is a module of its own, so what is shared is kept on the page and found by this symbol.
const LIVE = Symbol.for("uia_lab.live.v1");

const PING_MS = 20_000;
const SILENT_MS = 45_000;
const HIDDEN_MS = 5_000;
const LONGEST_MS = 30_000;

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

/** A request to the page's server with the proof that it comes from the page. */
function askServer(method, path) {
  const cookie = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/);
  return fetch(new URL(path, pageServer()), {
    method,
    credentials: "same-origin",
    headers: cookie ? { "X-XSRFToken": decodeURIComponent(cookie[1]) } : {},
  });
}

/** The page's shared connection. */
function liveOfPage() {
  return (globalThis[LIVE] ??= openLive());
}

/**
 * One socket with subscribers. `state` is "connecting", "live", "reconnecting" or "unavailable" (it has
 * never answered); after each reconnection the server sends a fresh snapshot, so nothing has to be replayed.
 */
function openLive() {
  const subscribers = new Set();
  const seen = { state: "connecting", instance: null, report: null };
  let socket = null;
  let failures = 0;
  let retry = 0;
  let hiding = 0;
  let heard = 0;
  let beat = 0;

  function tell(change) {
    Object.assign(seen, change);
    for (const subscriber of [...subscribers]) subscriber(seen);
  }

  function open() {
    const base = pageServer();
    if (socket || !base || !subscribers.size) return;
    clearTimeout(retry);
    const url = new URL(`uia/ws/page-${Math.random().toString(36).slice(2, 10)}`, base);
    url.protocol = url.protocol.replace("http", "ws");
    const mine = new WebSocket(url);
    socket = mine;
    heard = Date.now();
    mine.onmessage = (event) => {
      heard = Date.now();
      const message = JSON.parse(event.data);
      if (message.type === "connection") {
        failures = 0;
        mine.send(JSON.stringify({ type: "subscribe", topics: ["status"] }));
        tell({ state: "live", instance: message.instance_id });
      } else if (message.type === "update" && message.topic === "status") {
        tell({ report: message.data });
      }
    };
    mine.onclose = () => {
      if (socket !== mine) return;
      socket = null;
      clearInterval(beat);
      if (!subscribers.size || document.hidden) return;
      failures += 1;
      tell({ state: seen.instance ? "reconnecting" : failures > 1 ? "unavailable" : "connecting" });
      // Full jitter: many pages that lost one server must not come back in step.
      const longest = Math.min(LONGEST_MS, 500 * 2 ** failures);
      retry = setTimeout(open, 200 + Math.random() * longest);
    };
    clearInterval(beat);
    beat = setInterval(() => {
      if (Date.now() - heard > SILENT_MS) mine.close();
      else if (mine.readyState === WebSocket.OPEN) mine.send(JSON.stringify({ type: "ping" }));
    }, PING_MS);
  }

  function close() {
    clearTimeout(retry);
    clearInterval(beat);
    const mine = socket;
    socket = null;
    mine?.close();
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(close, HIDDEN_MS);
    else open();
  });

  return {
    seen,
    /** Calls back with every change of `seen`, and once now; returns what ends it. */
    subscribe(subscriber) {
      subscribers.add(subscriber);
      subscriber(seen);
      open();
      return () => {
        subscribers.delete(subscriber);
        if (!subscribers.size) close();
      };
    },
  };
}

/** An element with attributes and children; text is never parsed as HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Writes only what changed, so that a selection or a screen reader is not disturbed. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Shape as well as colour tells the states apart.
const ICONS = {
  healthy: '<circle cx="6" cy="6" r="4.5" fill="currentColor"/>',
  degraded:
    '<circle cx="6" cy="6" r="4" fill="none" stroke="currentColor" stroke-width="1.5"/><path d="M6 2a4 4 0 0 1 0 8z" fill="currentColor"/>',
  unhealthy: '<path d="M6 1.2 11.2 10.6H.8z" fill="currentColor"/>',
  offline: '<circle cx="6" cy="6" r="4" fill="none" stroke="currentColor" stroke-width="1.5"/>',
  initializing:
    '<circle cx="6" cy="6" r="4" fill="none" stroke="currentColor" stroke-width="1.5" stroke-dasharray="3 2"/>',
  unknown: '<path d="M2.5 6h7" stroke="currentColor" stroke-width="2"/>',
  done: '<path d="m2 6.5 2.8 2.8L10 3.4" fill="none" stroke="currentColor" stroke-width="1.8"/>',
  stopped: '<rect x="2.5" y="2.5" width="7" height="7" rx="1" fill="currentColor"/>',
  failed: '<path d="m2.5 2.5 7 7m0-7-7 7" stroke="currentColor" stroke-width="1.8"/>',
};
ICONS.waiting = ICONS.initializing;
ICONS.streaming = ICONS.healthy;
ICONS.live = ICONS.healthy;
ICONS.connecting = ICONS.initializing;
ICONS.reconnecting = ICONS.initializing;
ICONS["from kernel"] = ICONS.degraded;

/** A pill: icon and word. `setPill` changes it in place. */
function makePill(attributes = {}) {
  const pill = make("span", { class: "uia-pill", ...attributes });
  pill.append(make("span", { class: "uia-icon", "aria-hidden": "true" }), make("span"));
  return pill;
}

function setPill(pill, name) {
  if (pill.dataset.state === name) return;
  pill.dataset.state = name;
  pill.firstChild.innerHTML = `<svg viewBox="0 0 12 12" width="10" height="10">${ICONS[name] ?? ICONS.unknown}</svg>`;
  pill.lastChild.textContent = name;
}

/** A rate with as many digits as tell something. */
function rate(value) {
  return value === null || value === undefined ? null : value.toFixed(value < 10 ? 1 : 0);
}

/** A duration as number and unit. */
function duration(ms) {
  if (ms === null || ms === undefined) return null;
  if (ms < 10) return [ms.toFixed(1), "ms"];
  return ms < 1000 ? [ms.toFixed(0), "ms"] : [(ms / 1000).toFixed(2), "s"];
}
