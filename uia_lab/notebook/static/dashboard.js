// The widgets of a Lab in tabs: each is drawn when its tab is opened first.

function render({ model, el, host, signal }) {
  const names = model.get("names");
  const mine = `uia-${Math.random().toString(36).slice(2)}`;
  const tabs = names.map((name, index) =>
    make(
      "button",
      {
        type: "button",
        role: "tab",
        class: "uia-tab",
        id: `${mine}-tab-${index}`,
        "aria-controls": `${mine}-panel-${index}`,
        "data-testid": `uia-tab-${name.toLowerCase()}`,
      },
      name,
    ),
  );
  const panels = names.map((_, index) =>
    make("div", {
      role: "tabpanel",
      class: "uia-panel",
      id: `${mine}-panel-${index}`,
      "aria-labelledby": `${mine}-tab-${index}`,
      hidden: "",
    }),
  );
  const root = make("section", { class: "uia uia-dashboard", "data-testid": "uia-dashboard", "aria-label": "uia_lab" });
  root.append(make("div", { class: "uia-tabs", role: "tablist", "aria-label": "Views" }, ...tabs), ...panels);
  el.append(root);
  const drawn = new Set();

  async function open(chosen) {
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === chosen));
      tab.tabIndex = index === chosen ? 0 : -1;
      panels[index].hidden = index !== chosen;
    });
    if (drawn.has(chosen)) return;
    drawn.add(chosen);
    try {
      const widget = await host.getWidget(model.get("widgets")[chosen]);
      await widget.render({ el: panels[chosen], signal });
    } catch (error) {
      drawn.delete(chosen);
      panels[chosen].replaceChildren(make("p", { class: "uia-empty" }, `${names[chosen]} cannot be shown: ${error.message}`));
    }
  }

  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => open(index));
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const to = { Home: 0, End: last }[event.key] ?? (steps[event.key] ? index + steps[event.key] : null);
      if (to === null) return;
      event.preventDefault();
      const chosen = (to + tabs.length) % tabs.length;
      open(chosen);
      tabs[chosen].focus();
    });
  });
  open(0);
}

export default { render };
