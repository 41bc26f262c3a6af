// The peers of a service, live: who is how far away, whom we trust, and how others come in.

const FRESH_MS = 5_000;
const SURE_MS = 4_000;
const WIDTH = 560;
const HEIGHT = 260;
// One or two stand beside us, and the picture is low.
const LOW = 110;

// Heading, class
const COLUMNS = [
  ["Peer", ""],
  ["State", ""],
  ["Trust", "uia-roomy uia-peers-trust"],
  ["Lends us", ""],
  ["May use of ours", "uia-roomy"],
  ["Away", "uia-num"],
  ["In flight", "uia-num uia-roomy"],
  ["", "uia-peers-acts"],
];
const PILLS = { connected: "healthy", connecting: "initializing", found: "unknown", offline: "offline", refused: "failed" };

function render({ model, el }) {
  const pill = makePill({ role: "status", "aria-live": "polite", "data-testid": "uia-peers-connection" });
  const facts = make("span", { class: "uia-facts", "data-testid": "uia-peers-facts" });
  const picture = makeSvg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    class: "uia-peers-picture",
    "aria-hidden": "true",
    "data-testid": "uia-peers-picture",
  });
  const heads = COLUMNS.map(([heading, kind]) =>
    make("th", { scope: "col", class: kind || null }, heading || make("span", { class: "uia-hidden" }, "Actions")),
  );
  const body = make("tbody");
  const table = make(
    "table",
    { class: "uia-table", "data-testid": "uia-peers-table" },
    make("caption", { class: "uia-hidden" }, "Peers of this service, live"),
    make("thead", {}, make("tr", {}, ...heads)),
    body,
  );
  const empty = make("p", { class: "uia-empty", hidden: "" });
  const says = make("p", { class: "uia-peers-says", role: "status", "aria-live": "polite", "data-testid": "uia-peers-says" });
  const where = make("p", { class: "uia-foot" });

  const name = make("input", { type: "text", class: "uia-input", maxlength: "64", placeholder: "a friend's name", "data-testid": "uia-peers-name" });
  const most = make("input", { type: "number", class: "uia-input uia-short", min: "1", max: "1000", value: "4", "data-testid": "uia-peers-most" });
  const invite = make("button", { type: "submit", class: "uia-button", "data-testid": "uia-peers-invite" }, "Make an invite");
  const link = make("input", { type: "text", readonly: "", class: "uia-input uia-peers-link", "aria-label": "Link of the invite", "data-testid": "uia-peers-link" });
  const copy = make("button", { type: "button", class: "uia-button" }, "Copy");
  const shown = make("span", { class: "uia-peers-shown", hidden: "" }, link, copy);
  const inviting = make(
    "form",
    { class: "uia-peers-form" },
    make("label", { class: "uia-label" }, "Invite", name),
    make("label", { class: "uia-label" }, "requests at once", most),
    invite,
    shown,
  );
  const given = make("input", { type: "text", class: "uia-input uia-peers-link", placeholder: "the link a friend sent", "data-testid": "uia-peers-given" });
  const lend = make("input", { type: "checkbox" });
  const accept = make("button", { type: "submit", class: "uia-button", "data-testid": "uia-peers-accept" }, "Accept");
  const accepting = make(
    "form",
    { class: "uia-peers-form" },
    make("label", { class: "uia-label uia-peers-given" }, "Accept", given),
    make("label", { class: "uia-label" }, lend, "lend ours in return"),
    accept,
  );
  const forms = make(
    "div",
    { class: "uia-peers-forms" },
    make("p", { class: "uia-peers-warning" }, "Whoever runs a peer can read what you ask it."),
    inviting,
    accepting,
  );
  const root = make("section", { class: "uia uia-peers", "data-testid": "uia-peers", "aria-label": "Peers" });
  root.append(
    make("div", { class: "uia-bar" }, make("strong", { class: "uia-title" }, "Peers"), facts, pill),
    picture,
    make("div", { class: "uia-scroll" }, table),
    empty,
    forms,
    says,
    where,
  );
  el.append(root);

  const rows = new Map();
  let signature = "";
  let fetching = false;
  let closed = false;

  function short(peer) {
    return peer.name || `…${peer.peer_id.slice(-8)}`;
  }

  function lends(peer) {
    return (peer.offer?.models ?? []).map((each) => each.name).join(", ") || "–";
  }

  function quota(peer) {
    if (!peer.trusted || !peer.quota) return "–";
    const { models, max_concurrent: atOnce, tokens_per_minute: tokens } = peer.quota;
    if (models && !models.length) return "nothing";
    const words = [models ? models.join(", ") : "all that is lent"];
    if (atOnce !== null && atOnce !== undefined) words.push(`${atOnce} at once`);
    if (tokens !== null && tokens !== undefined) words.push(`${tokens} tokens/min`);
    return words.join("; ");
  }

  function say(text, bad = false) {
    write(says, text);
    says.classList.toggle("uia-error", bad);
  }

  // A second click within a while, so that nobody is thrown out by a slip.
  function sure(button, word, act) {
    let armed = 0;
    const rest = () => {
      armed = 0;
      write(button, word);
    };
    button.addEventListener("click", () => {
      if (armed) {
        clearTimeout(armed);
        rest();
        act();
      } else {
        armed = setTimeout(rest, SURE_MS);
        write(button, `Really ${word.toLowerCase()}?`);
      }
    });
  }

  async function attempt(button, act) {
    button.disabled = true;
    try {
      await act();
    } catch (error) {
      say(error.message, true);
    } finally {
      button.disabled = false;
    }
  }

  function makeRow(peer) {
    const cells = COLUMNS.map(([, kind], index) =>
      index ? make("td", { class: kind || null }) : make("th", { scope: "row" }),
    );
    cells[0].append(make("span", { class: "uia-name" }), make("span", { class: "uia-sub uia-peers-id" }));
    cells[1].append(makePill(), make("span", { class: "uia-sub" }));
    const trust = make("button", { type: "button", class: "uia-button", "data-testid": "uia-peers-trust" }, "Trust");
    const revoke = make("button", { type: "button", class: "uia-button", "data-testid": "uia-peers-revoke" }, "Revoke");
    const id = peer.peer_id;
    trust.addEventListener("click", () =>
      attempt(trust, async () => {
        await act("trust_peer", id, {});
        say(`${short(peer)} is trusted now.`);
      }),
    );
    sure(revoke, "Revoke", () =>
      attempt(revoke, async () => {
        await act("revoke_peer", id);
        say(`${short(peer)} is trusted no more.`);
      }),
    );
    cells[7].append(trust, revoke);
    const row = make("tr", { "data-testid": "uia-peers-row", "data-peer": id }, ...cells);
    rows.set(id, row);
    return row;
  }

  function drawRow(row, peer) {
    const [who, state, trust, lent, use, away, flight, acts] = row.cells;
    const connected = peer.state === "connected";
    write(who.children[0], short(peer));
    write(who.children[1], peer.peer_id);
    setPill(state.children[0], PILLS[peer.state] ?? "unknown");
    write(state.children[0].lastChild, peer.state);
    write(state.children[1], peer.reason ?? "");
    write(trust, peer.ours ? "ours" : peer.trusted ? "trusted" : "no");
    write(lent, lends(peer));
    write(use, quota(peer));
    write(away, connected && peer.rtt_ms != null ? duration(peer.rtt_ms).join(" ") : "–");
    write(flight, connected && peer.load ? String(peer.load.in_flight) : "–");
    acts.children[0].hidden = peer.trusted;
    acts.children[1].hidden = !peer.trusted;
    acts.children[0].setAttribute("aria-label", `Trust ${short(peer)}`);
    row.classList.toggle("uia-busy", connected && (peer.load?.in_flight ?? 0) > 0);
    row.classList.toggle("uia-out", !connected);
  }

  // Nearer to the middle is nearer in time, by its logarithm: 1 ms and 100 ms both want to be seen.
  function drawPicture(report) {
    const peers = report.peers.filter((peer) => peer.trusted || peer.state === "connected").slice(0, 24);
    picture.toggleAttribute("hidden", !report.node || !peers.length);
    const shapes = [];
    const few = peers.length < 3;
    const height = few ? LOW : HEIGHT;
    put(picture, "viewBox", `0 0 ${WIDTH} ${height}`);
    put(picture, "height", height);
    const [midX, midY] = [WIDTH / 2, height / 2];
    peers.forEach((peer, index) => {
      const turn = (2 * Math.PI * index) / peers.length - (few ? 0 : Math.PI / 2);
      const connected = peer.state === "connected";
      const far = connected ? Math.min(1, Math.log10(1 + (peer.rtt_ms ?? 1)) / 2.5) : 1;
      const x = midX + Math.cos(turn) * (90 + far * 100);
      const y = midY + Math.sin(turn) * (52 + far * 42);
      const text = connected && peer.rtt_ms != null ? duration(peer.rtt_ms).join(" ") : peer.state;
      const tone = `uia-peers-${connected ? "there" : "gone"}`;
      shapes.push(
        makeSvg("line", { x1: midX, y1: midY, x2: x, y2: y, class: `uia-peers-line ${tone}` }),
        connected
          ? makeSvg("circle", { cx: x, cy: y, r: peer.trusted ? 8 : 5, class: `uia-peers-dot ${tone}` })
          : makeSvg("rect", { x: x - 6, y: y - 6, width: 12, height: 12, rx: 2, class: `uia-peers-dot ${tone}` }),
        makeSvg("text", { x, y: y - 13, class: "uia-peers-label" }, short(peer)),
        makeSvg("text", { x, y: y + 21, class: "uia-peers-label uia-peers-small" }, text),
      );
    });
    picture.replaceChildren(
      ...shapes,
      makeSvg("circle", { cx: midX, cy: midY, r: 12, class: "uia-peers-us" }),
      makeSvg("text", { x: midX, y: midY + 27, class: "uia-peers-label" }, "this service"),
    );
  }

  function drawFacts(report) {
    const there = report.peers.filter((peer) => peer.state === "connected").length;
    const node = report.node;
    const items = node
      ? [
          [`${there} of ${report.peers.length}`, "connected"],
          [node.network, `network, ${node.mode}`],
          [node.lends.length || "none", "models lent"],
          [report.invites.length, "open invites"],
        ]
      : [];
    facts.replaceChildren(
      ...items.map(([value, key]) => {
        const item = make("span", { class: "uia-fact" });
        item.append(make("span", {}, String(value)), " ", make("span", { class: "uia-key" }, key));
        return item;
      }),
    );
  }

  function draw(report) {
    const peers = report.peers ?? [];
    drawFacts(report);
    drawPicture(report);
    const kept = new Set(peers.map((peer) => peer.peer_id));
    for (const [id, row] of rows) {
      if (!kept.has(id)) {
        row.remove();
        rows.delete(id);
      }
    }
    peers.forEach((peer, index) => {
      const row = rows.get(peer.peer_id) ?? makeRow(peer);
      if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
      drawRow(row, peer);
    });
    table.hidden = peers.length === 0;
    empty.hidden = peers.length > 0;
    forms.hidden = !report.node;
    write(
      empty,
      report.node
        ? "No peer is known yet: invite a friend, or accept an invite."
        : "No network of peers: start the server with enable_libp2p=True (LIBP2P_ENABLE=true).",
    );
    write(where, report.node ? `This is ${report.node.peer_id}, served by ${model.get("where")}` : `Served by ${model.get("where")}`);
  }

  function setConnection(state) {
    setPill(pill, state);
    root.classList.toggle("uia-stale", isStale(state));
  }

  async function act(name, ...parameters) {
    const value = await service.ask(name, ...parameters);
    refresh();
    return value;
  }

  async function refresh() {
    if (fetching || closed || document.hidden) return;
    fetching = true;
    try {
      const report = await service.ask("peers");
      if (!closed) draw(report);
    } catch {
      // What is shown stays, and the pill says how the connection is.
    } finally {
      fetching = false;
    }
  }

  // The status moves with every request; the peers are asked for anew when one of them came, went or is busy.
  function changed() {
    setConnection(service.state);
    const peers = (service.report?.backends ?? []).filter((backend) => backend.type === "p2p");
    const now = `${service.state} ${JSON.stringify(peers.map((each) => [each.id, each.status, each.reason]))}`;
    if (now === signature) return;
    signature = now;
    refresh();
  }

  inviting.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(invite, async () => {
      const fields = { max_concurrent: Number(most.value) || 4 };
      if (name.value.trim()) fields.name = name.value.trim();
      const made = await act("invite_peer", fields);
      link.value = made.link;
      shown.hidden = false;
      link.focus();
      link.select();
      say("Send this link to one friend by a way that others cannot read. It works once, and is not shown again.");
    });
  });

  copy.addEventListener("click", () =>
    attempt(copy, async () => {
      await navigator.clipboard.writeText(link.value);
      say("Copied.");
    }),
  );

  accepting.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!given.value.trim()) return;
    attempt(accept, async () => {
      const fields = { link: given.value.trim(), lend: lend.checked };
      say("Connecting…");
      const peer = await act("accept_invite", fields);
      given.value = "";
      say(`${short(peer)} lends us ${lends(peer)}.`);
    });
  });

  const service = serviceOf(model, changed);
  setConnection(service.state);
  if (model.get("peers").peers) draw(model.get("peers"));
  else forms.hidden = table.hidden = true;
  const renewing = setInterval(refresh, FRESH_MS);

  return () => {
    closed = true;
    clearInterval(renewing);
    service.close();
  };
}

export default { render };
