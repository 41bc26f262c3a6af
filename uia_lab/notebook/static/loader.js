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

async function moduleOf(model) {
  const ids = model.get("_sources").map((reference) => reference.slice("anywidget:".length));
  const models = await Promise.all(ids.map((id) => model.widget_manager.get_model(id)));
  const [css, ...code] = models.map((source) => source.get("text"));
  const whole = code.join("\n");
  const loaded = (globalThis[MODULES] ??= new Map());
  if (!loaded.has(whole)) loaded.set(whole, load(whole, css));
  return loaded.get(whole);
}

export default {
  // Not waited for: a widget that is not ready within two seconds would lose its messages.
  initialize(view) {
    let over = false;
    const begun = moduleOf(view.model).then((module) => (over ? null : module.default.initialize?.(view)));
    begun.catch(() => {});
    return async () => {
      over = true;
      await (await begun.catch(() => null))?.();
    };
  },

  async render(view) {
    const module = await moduleOf(view.model);
    module.keepKeys(view.el);
    return module.default.render(view);
  },
};
