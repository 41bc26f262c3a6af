// How far the load of one model is.

function render({ model, el }) {
  const name = model.get("model_id_shown");
  const progress = makeProgress(`Loading ${name}`);
  const root = make("section", { class: "uia uia-load", "aria-label": "Loading a model", "data-testid": "uia-load" });
  root.append(make("div", { class: "uia-load-line" }, make("span", { class: "uia-title" }, name), progress.element));
  el.append(root);
  const draw = () => progress.set(model.get("step"));
  model.on("change:step", draw);
  draw();
  const clock = setInterval(progress.draw, 200);
  return () => {
    clearInterval(clock);
    model.off("change:step", draw);
  };
}

export default { render };
