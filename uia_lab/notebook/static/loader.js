// The module of every widget: it finds the code in models that all widgets of the notebook share, so that a saved
// notebook has one copy of it.
const MODULES = Symbol.for("uia_lab.modules");

async function load(code, css) {
  const style = document.createElement("style");
  style.textContent = css;
  document.head.append(style);
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  try {
    return await import(address);
  } finally {
    URL.revokeObjectURL(address);
  }
}

export default {
  async render(view) {
    const models = await Promise.all(view.model.get("_sources").map((reference) => view.host.getModel(reference)));
    const [css, ...code] = models.map((model) => model.get("text"));
    const whole = code.join("\n");
    const loaded = (globalThis[MODULES] ??= new Map());
    if (!loaded.has(whole)) loaded.set(whole, load(whole, css));
    return (await loaded.get(whole)).default.render(view);
  },
};
