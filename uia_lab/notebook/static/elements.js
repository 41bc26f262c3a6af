// What widgets are drawn with. Text is never parsed as HTML.

const PAINT_MS = 80;
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The same for SVG. */
function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Sets an attribute only when it changes. */
function put(element, name, value) {
  const text = String(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
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
ICONS.drained = ICONS.stopped;
ICONS.serves = ICONS.done;
ICONS.ok = ICONS.done;
ICONS.cancelled = ICONS.stopped;
ICONS.rejected = ICONS.unknown;
ICONS["could serve"] = ICONS.offline;
ICONS.cannot = ICONS.failed;
ICONS.running = ICONS.initializing;
ICONS.waiting = ICONS.initializing;
ICONS.streaming = ICONS.healthy;
ICONS.live = ICONS.healthy;
ICONS.connecting = ICONS.initializing;
ICONS.reconnecting = ICONS.initializing;
ICONS["no answer"] = ICONS.unknown;
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

/** Whether what is shown may not be so any more. */
function isStale(state) {
  return state === "reconnecting" || state === "no answer";
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

/** A number in a table: digits that stand in line, since each unit of a column has the same width. */
function setNumber(cell, value, unit = "", width = 0) {
  const missing = value === null || value === undefined;
  const shown = missing ? "–" : String(value);
  if (cell.dataset.shown === shown + unit) return;
  cell.dataset.shown = shown + unit;
  cell.replaceChildren(shown);
  if (width) cell.append(make("span", { class: "uia-unit", style: `width:${width}em` }, missing ? "" : unit));
}

/** The time of day of seconds since the epoch. */
function timeOfDay(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
}

/** A labelled choice; `options` are values, or pairs of value and text. */
function makeSelect(label, options, attributes = {}) {
  const select = make("select", { class: "uia-select", ...attributes });
  setOptions(select, options);
  return [make("label", { class: "uia-label" }, make("span", { class: "uia-key" }, label), select), select];
}

/** The options of a choice; what is chosen stays so while it is among them. */
function setOptions(select, options) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  const shown = JSON.stringify(pairs);
  if (select.dataset.options === shown) return;
  const chosen = select.value;
  select.dataset.options = shown;
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
  if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

/** A button. */
function makeButton(text, attributes = {}) {
  return make("button", { type: "button", class: "uia-button", ...attributes }, text);
}

/** A line that says what came of an action; it has its place whether or not it says anything. */
function makeNotice(attributes = {}) {
  const line = make("p", { class: "uia-notice", role: "status", "aria-live": "polite", ...attributes });
  return Object.assign(line, {
    say(text, kind = "") {
      line.dataset.kind = kind;
      line.title = text;
      write(line, text);
    },
  });
}

/** Runs an action of a button, which is off meanwhile, and says how it went. */
async function act(button, notice, done, action) {
  button.disabled = true;
  try {
    const result = await action();
    notice.say(typeof done === "function" ? done(result) : done);
    return result;
  } catch (error) {
    notice.say(error.message, "bad");
    return null;
  } finally {
    button.disabled = false;
  }
}

// With Ctrl or Cmd these work on the text of a field.
const EDITING = new Set(["a", "c", "v", "x", "y", "z", "enter"]);

function keepKey(event) {
  const command = event.ctrlKey || event.metaKey;
  const edits = event.target.matches("input, textarea, select") && EDITING.has(event.key.toLowerCase());
  if (command ? edits : !event.altKey) event.stopPropagation();
}

/** Keys pressed in an element are no shortcuts of the page; those with Ctrl, Cmd or Alt still are, outside of fields. */
function keepKeys(element) {
  element.addEventListener("keydown", keepKey);
}

/** A small curve of values, from nothing at the bottom to the largest at the top of `width` x `height`. */
function sparkline(values, width, height) {
  if (!values.length) return "";
  const top = Math.max(...values) || 1;
  const step = width / Math.max(1, values.length - 1);
  const y = (value) => (height - 2 - (value / top) * (height - 4)).toFixed(1);
  if (values.length === 1) return `M0 ${y(values[0])}H${width}`;
  return values.map((value, index) => `${index ? "L" : "M"}${(index * step).toFixed(1)} ${y(value)}`).join("");
}

/** Makes of many wishes to draw few drawings: never two within PAINT_MS, always one after the last wish. */
function makePainter(paint) {
  let timer = 0;
  let last = -Infinity;
  const painter = () => {
    if (timer) return;
    timer = setTimeout(() => {
      timer = 0;
      last = performance.now();
      paint();
    }, Math.max(0, last + PAINT_MS - performance.now()));
  };
  painter.end = () => clearTimeout(timer);
  return painter;
}

export { keepKeys };
