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

async function widgetOf(model, find) {
  const models = await Promise.all(model.get("_sources").map(find));
  const [css, ...code] = models.map((source) => source.get("text"));
  const whole = code.join("\n");
  const loaded = (globalThis[MODULES] ??= new Map());
  if (!loaded.has(whole)) loaded.set(whole, load(whole, css));
  return (await loaded.get(whole)).default;
}

export default {
  // For a widget with a mark, which dresses its still forms. It has no host yet, not every place can find models
  // without one, and nothing may wait here: a widget that is not ready within two seconds is given up.
  initialize({ model, signal }) {
    const manager = model.widget_manager;
    if (!model.get("mark") || !manager?.get_model) return undefined;
    let end;
    widgetOf(model, (reference) => manager.get_model(reference.replace("anywidget:", "")))
      .then((widget) => {
        if (!signal.aborted) end = widget.initialize?.({ model });
      })
      .catch((error) => console.warn("uia_lab: the buttons of a still form are missing:", error));
    return () => end?.();
  },
  async render(view) {
    const widget = await widgetOf(view.model, (reference) => view.host.getModel(reference));
    return widget.render(view);
  },
};
