// What several widgets do with a text: copy it, stop its request, and show Markdown as elements.

const COPIED_MS = 1_600;

/** Puts a text on the clipboard; whether it worked. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A page over plain http from another machine has no clipboard of its own.
    const area = make("textarea", { class: "uia-hidden", tabindex: "-1" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** A button with a word and what it does. */
function actButton(word, attributes, act) {
  const button = make("button", { type: "button", class: "uia-act", ...attributes }, word);
  button.addEventListener("click", act);
  return button;
}

/** A button that copies and says so; it keeps its width while it does. */
function copyButton(word, attributes, text) {
  const button = actButton(word, { "aria-live": "polite", ...attributes }, async () => {
    const done = await copyText(text());
    button.style.minWidth = `${button.offsetWidth}px`;
    write(button, done ? "Copied" : "Not copied");
    setTimeout(() => write(button, word), COPIED_MS);
  });
  return button;
}

/** A figure with its name and unit. */
function makeFact(name, value, unit = "") {
  const item = make("span", { class: "uia-fact" });
  item.append(make("span", { class: "uia-key" }, name), " ", make("span", {}, value));
  if (unit) item.append(make("span", { class: "uia-unit" }, ` ${unit}`));
  return item;
}

/** The figures of a text that arrives: first token, speed, and what else is known of it. */
function textFacts(shown) {
  const items = [];
  const first = shown.first_token_s === null ? null : duration(shown.first_token_s * 1000);
  if (first) items.push(makeFact("first token", ...first));
  if (shown.tokens_per_s !== null) items.push(makeFact("speed", rate(shown.tokens_per_s), "tok/s"));
  if (shown.backend) items.push(makeFact("backend", shown.backend));
  return items;
}

/** Ends a request by the server itself, which works while the kernel is busy; once an id. */
function stopAtServer(model, id, asked) {
  if (!id || asked.has(id) || !model.get("direct") || !pageServer()) return;
  asked.add(id);
  askServer("DELETE", `uia/requests/${encodeURIComponent(id)}`).catch(() => {});
}

/** Appends what is new of a text to its node, so that a reader's selection is kept. */
function writeText(node, text) {
  if (text.startsWith(node.data)) {
    if (text.length > node.data.length) node.appendData(text.slice(node.data.length));
  } else node.data = text;
}

// Elements that Markdown may become. The kernel parses it and sends [tag, attributes, children]; a page makes
// elements of these tags only, and text of everything else.
const TAGS = new Set(
  "p h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong s a br hr table thead tbody tr th td".split(" "),
);
const LINKS = new Set(["http:", "https:", "mailto:"]);

function markdownElement(node) {
  if (typeof node === "string") return document.createTextNode(node);
  const [tag, attributes, children] = node;
  const element = document.createElement(TAGS.has(tag) ? tag : "span");
  if (tag === "a") {
    const target = safeLink(attributes.href);
    if (target) {
      element.href = target;
      element.target = "_blank";
      element.rel = "noopener noreferrer";
    }
  }
  if (tag === "ol" && Number.isInteger(attributes.start)) element.start = attributes.start;
  if (tag === "th" || tag === "td") element.style.textAlign = attributes.align ?? "";
  if (tag === "pre") {
    element.tabIndex = 0;
    if (attributes.language) element.dataset.language = attributes.language;
  }
  element.append(...children.map(markdownElement));
  return element;
}

function safeLink(href) {
  try {
    const url = new URL(href);
    return LINKS.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/** Shows Markdown in an element; blocks that have not changed stay as they are. */
function writeMarkdown(element, blocks) {
  const known = (element.uiaBlocks ??= []);
  blocks.forEach((block, index) => {
    const wanted = JSON.stringify(block);
    if (known[index] === wanted) return;
    known[index] = wanted;
    const made = markdownElement(block);
    if (element.childNodes[index]) element.replaceChild(made, element.childNodes[index]);
    else element.append(made);
  });
  known.length = blocks.length;
  while (element.childNodes.length > blocks.length) element.lastChild.remove();
}

for (const [name, like] of [["ready", "offline"], ["loaded", "healthy"], ["loading", "initializing"], ["unloaded", "offline"], ["loadable", "offline"], ["not loadable", "failed"]]) {
  ICONS[name] = ICONS[like];
}

const STAGES = { finding: "finding it", fetching: "fetching", waiting_for_room: "waiting for memory", loading: "loading into memory" };

/** A number of bytes as number and unit. */
function bytes(value) {
  if (!value) return null;
  return value >= 1e9 ? [(value / 1e9).toFixed(2), "GB"] : [(value / 1e6).toFixed(0), "MB"];
}

/** A bar for a load: as far as it is known, moving where it is not. `set` takes `{stage, done, total}`. */
function makeProgress(label) {
  const fill = make("div", { class: "uia-progress-fill" });
  const bar = make("div", { class: "uia-progress", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, fill);
  const words = make("span", { class: "uia-progress-words" });
  const element = make("div", { class: "uia-progress-row", "data-testid": "uia-progress" }, bar, words);
  let began = performance.now();
  let stage = "";
  let told = { stage: "finding", done: 0, total: 1 };

  function draw() {
    const part = told.stage === "fetching" && told.total > 1 ? told.done / told.total : null;
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    const said = STAGES[told.stage] ?? String(told.stage).replaceAll("_", " ");
    bar.toggleAttribute("data-moving", part === null);
    bar.dataset.stage = told.stage;
    if (part === null) {
      bar.removeAttribute("aria-valuenow");
      bar.setAttribute("aria-valuetext", said);
      fill.style.width = "";
      write(words, `${said} · ${seconds} s`);
      return;
    }
    const percent = Math.round(part * 100);
    bar.setAttribute("aria-valuenow", String(percent));
    bar.setAttribute("aria-valuetext", `${said}, ${percent} percent`);
    fill.style.width = `${part * 100}%`;
    write(words, `${said} · ${percent} % · ${(told.done / 1e6).toFixed(0)} of ${bytes(told.total).join(" ")}`);
  }

  return {
    element,
    draw,
    set(step) {
      if (step.stage !== stage) began = performance.now();
      stage = step.stage;
      told = step;
      draw();
    },
  };
}

// Still forms on the page, by the mark of the widget that dresses them. One observer for all of them.
const STILLS = Symbol.for("uia_lab.stills.v1");

function stillsOfPage() {
  if (globalThis[STILLS]) return globalThis[STILLS];
  const dressers = new Map();
  const dressed = new Map();
  let looking = false;
  const look = () => {
    looking = false;
    for (const still of dressed.keys()) if (!still.isConnected) dressed.delete(still);
    for (const still of document.querySelectorAll("[data-uia-mark]")) {
      const dress = dressers.get(still.dataset.uiaMark);
      if (!dress || dressed.has(still)) continue;
      keepKeys(still);
      dressed.set(still, dress(still));
    }
  };
  const soon = () => {
    if (looking) return;
    looking = true;
    requestAnimationFrame(look);
  };
  new MutationObserver(soon).observe(document.body, { childList: true, subtree: true });
  globalThis[STILLS] = { dressers, dressed, soon };
  return globalThis[STILLS];
}

/**
 * Dresses the still forms that carry a mark, those that come later too; `dress` gets the element and returns what
 * undresses it. Returns what ends it.
 */
function dressStills(mark, dress) {
  if (!mark) return undefined;
  const { dressers, dressed, soon } = stillsOfPage();
  dressers.set(mark, dress);
  soon();
  return () => {
    dressers.delete(mark);
    for (const [still, undress] of dressed) {
      if (still.dataset.uiaMark !== mark) continue;
      undress();
      dressed.delete(still);
    }
  };
}
