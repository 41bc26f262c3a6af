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
function makeButton(word, attributes, act) {
  const button = make("button", { type: "button", class: "uia-act", ...attributes }, word);
  button.addEventListener("click", act);
  return button;
}

/** A button that copies and says so; it keeps its width while it does. */
function copyButton(word, attributes, text) {
  const button = makeButton(word, { "aria-live": "polite", ...attributes }, async () => {
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
