// The grid of figures and tables, their buttons, and the picker of what is drawn.

const MODES = [
  ["log", "Log", "Logarithmic scale"],
  ["stack", "Stack", "Stack the series"],
  ["ratio", "Ratio", "Show each as a fraction of the total"],
];
const MOST_LISTED = 200;

function toggleButton(parent, name, text, title, onClick) {
  const button = element("button", name, parent);
  button.type = "button";
  button.textContent = text;
  button.title = title;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", onClick);
  return button;
}

function press(button, on) {
  if (button.getAttribute("aria-pressed") !== String(on)) button.setAttribute("aria-pressed", String(on));
}

const applies = (mode, plot) => plot.kind !== "table" &&
  (mode === "log" || (plot.kind === "steps" && plot.series.length > 1));

class Card {
  constructor(board, name, state) {
    this.board = board;
    this.state = state;
    this.root = element("figure", "card", board.grid);
    this.head = element("figcaption", "card-head", this.root);
    this.title = element("span", "card-name", this.head);
    this.sum = element("span", "card-sum", this.head);
    const tools = element("span", "tools", this.head);
    tools.setAttribute("role", "group");
    tools.setAttribute("aria-label", `View of ${name}`);
    this.buttons = new Map(MODES.map(([mode, text, title]) =>
      [mode, toggleButton(tools, "tool", text, title, () => this.toggle(mode))]));
    setText(this.title, name);
    this.title.title = name;
    this.choice = element("select", "choose", this.root);
    this.choice.setAttribute("aria-label", `Category of ${name}`);
    this.choice.addEventListener("change", () => {
      const at = this.choice.selectedIndex;
      board.say({ type: "choose", name, category: at ? this.plot.choices[at - 1] : null });
    });
    // In a notebook, keys would else be commands.
    this.choice.addEventListener("keydown", (event) => event.stopPropagation());
    this.body = element("div", "card-body", this.root);
    this.legend = element("div", "legend", this.root);
    this.last = null;
  }

  toggle(mode) {
    this.state[mode] = !this.state[mode];
    this.board.soon();
  }

  /** Takes a new description; what was built for another kind goes. */
  describe(plot) {
    if (this.plot?.kind !== plot.kind) {
      this.body.replaceChildren();
      this.figure = this.table = this.readout = null;
      this.root.dataset.kind = plot.kind;
    }
    this.plot = plot;
    this.last = null;
    this.describeChoices(plot);
    if (plot.kind === "table") return;
    if (!this.figure) {
      this.figure = new Figure(this.body);
      this.readout = element("div", "readout", this.body);
      this.readout.setAttribute("aria-live", "polite");
      this.readout.hidden = true;
      this.listen();
    }
    const names = plot.series.length > 1 ? `, ${plot.series.map((series) => series.name).join(", ")}` : "";
    this.figure.svg.setAttribute("aria-label",
      `${plot.name}: ${plot.kind === "map" ? "heat map" : "histogram"}${names}. Arrow keys read the bins.`);
    this.describeLegend(plot);
  }

  /** The categories of a map; which is drawn is said by Python, as it takes a moment. */
  describeChoices(plot) {
    const names = plot.choices ?? [];
    const key = JSON.stringify([names, plot.chosen]);
    if (key === this.choicesKey) return;
    this.choicesKey = key;
    const labels = plot.choice_labels ?? names;
    this.choice.replaceChildren(...["all categories", ...labels].map((one) => new Option(one)));
    this.choice.selectedIndex = names.indexOf(plot.chosen) + 1;
    this.choice.hidden = names.length < 2 || plot.kind !== "map";
  }

  describeLegend(plot) {
    const names = plot.kind === "steps" && plot.series.length > 1 ? plot.series.map((series) => series.name) : [];
    const key = JSON.stringify(names);
    if (key === this.legendKey) return;
    this.legendKey = key;
    this.legend.replaceChildren();
    this.entries = names.map((name, i) => {
      const hide = () => {
        if (!this.state.hidden.delete(name)) this.state.hidden.add(name);
        this.board.soon();
      };
      const button = toggleButton(this.legend, "entry", "", `Show or hide ${name}`, hide);
      const swatch = element("span", "swatch", button);
      swatch.style.setProperty("--hepscale-series", SERIES_COLOURS[i % SERIES_COLOURS.length]);
      swatch.style.borderTopStyle = ["solid", "dashed", "dotted"][Math.floor(i / SERIES_COLOURS.length) % 3];
      element("span", "entry-name", button).textContent = name;
      return { name, button };
    });
  }

  listen() {
    const { svg } = this.figure;
    const to = (bin) => {
      this.cursor = bin;
      this.read();
    };
    svg.addEventListener("pointermove", (event) => to(this.figure.binAt(event)));
    svg.addEventListener("pointerleave", () => to(null));
    svg.addEventListener("blur", () => to(null));
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      const place = this.figure.place;
      if (!place || (!step && event.key !== "Escape")) return;
      event.preventDefault();
      event.stopPropagation();
      if (!step) return void to(null);
      const limit = (value, count) => Math.max(0, Math.min(count - 1, value));
      const [i, j] = this.cursor ?? [step[0] < 0 ? place.bins : -1, 0];
      to([limit(i + step[0], place.bins), limit(j + step[1], (place.heights?.length ?? 2) - 1)]);
    });
  }

  read() {
    const { place } = this.figure;
    const [i, j] = this.cursor ?? [];
    const known = this.cursor && place && i < place.bins && j < (place.heights?.length ?? 2) - 1;
    if (!known) this.figure.unmark();
    setLines(this.readout, known ? this.figure.mark(i, j) : [], "div");
    this.readout.classList.toggle("hepscale-run-left", Boolean(known) &&
      (place.places[i] > (place.box.left + place.box.right) / 2));
  }

  /** Draws, unless nothing has changed since the last time. */
  draw(floats, width) {
    const { plot, state } = this;
    const spans = plot.series.flatMap((series) => [series.values, series.variances]).filter(Boolean);
    const seen = `${width} ${state.log} ${state.stack} ${state.ratio} ${[...state.hidden].join("\n")}`;
    const same = this.last?.seen === seen && spans.every(([from, count], k) =>
      this.last.parts[k].length === count && this.last.parts[k].every((value, i) => Object.is(value, floats[from + i])));
    if (same) return;
    this.last = { seen, parts: spans.map(([from, count]) => floats.slice(from, from + count)) };
    for (const [mode, button] of this.buttons) {
      button.hidden = !applies(mode, plot);
      press(button, state[mode]);
    }
    if (plot.kind === "table") return void this.drawTable(floats);
    const height = Math.round(Math.max(150, Math.min(340, width * 0.62)));
    const total = this.figure[plot.kind](plot, floats, state, width, height);
    setText(this.sum, `Σ ${numberText(total)}`);
    for (const { name, button } of this.entries ?? []) press(button, !state.hidden.has(name));
    if (this.cursor) this.read();
  }

  drawTable(floats) {
    const { plot } = this;
    if (!this.table) {
      this.body.tabIndex = 0;
      this.table = element("table", "table", this.body);
      this.table.createCaption().textContent = plot.name;
    }
    const several = plot.series.length > 1;
    const columns = several
      ? plot.series.map((series) => series.name)
      : [plot.series[0]?.name || "Number", "of previous", "of first"];
    const rows = [["", ...columns], ...(plot.rows ?? []).map((name, i) => {
      const cells = plot.series.map((series) => floats[series.values[0] + i]);
      if (several) return [name, ...cells.map(countText)];
      const first = floats[plot.series[0].values[0]];
      const before = i ? floats[plot.series[0].values[0] + i - 1] : NaN;
      const part = (whole) => (i && whole ? `${trimmed((100 * cells[0]) / whole, 1)} %` : "");
      return [name, countText(cells[0]), part(before), part(first)];
    })];
    while (this.table.rows.length > rows.length) this.table.deleteRow(-1);
    rows.forEach((texts, i) => {
      const row = this.table.rows[i] ?? this.table.insertRow();
      while (row.cells.length > texts.length) row.lastChild.remove();
      texts.forEach((text, k) => {
        const cell = row.cells[k] ?? row.appendChild(document.createElement(i && k ? "td" : "th"));
        cell.scope = i ? "row" : "col";
        setText(cell, text);
      });
      if (!i || several) return;
      const [from] = plot.series[0].values;
      const part = floats[from] ? Math.max(0, Math.min(1, floats[from + i - 1] / floats[from])) : 0;
      row.style.setProperty("--hepscale-part", `${px(100 * part)}%`);
    });
  }
}

class Board {
  constructor(parent, redraw, say) {
    this.soon = redraw;
    this.say = say;
    this.root = parent;
    this.bar = element("div", "toolbar", parent);
    this.bar.setAttribute("role", "group");
    this.bar.setAttribute("aria-label", "All plots");
    this.buttons = MODES.map(([mode, text, title]) =>
      [mode, toggleButton(this.bar, "tool", text, `${title}, all plots`, () => this.toggleAll(mode))]);
    this.picker = new Picker(this.bar, (names) => say({ type: "watch", names }));
    this.grid = element("div", "grid", parent);
    this.cards = new Map();
    this.states = new Map();
    this.root.hidden = true;
    this.sizes = new ResizeObserver(() => this.soon());
    this.sizes.observe(this.grid);
  }

  plots(mode) {
    return [...this.cards.values()].filter((card) => applies(mode, card.plot));
  }

  toggleAll(mode) {
    const cards = this.plots(mode);
    const on = !cards.every((card) => card.state[mode]);
    for (const card of cards) card.state[mode] = on;
    this.soon();
  }

  describe(spec) {
    if (spec === this.spec) return;
    this.spec = spec;
    const plots = spec?.plots ?? [];
    const names = new Set(plots.map((plot) => plot.name));
    for (const [name, card] of this.cards) {
      if (names.has(name)) continue;
      card.root.remove();
      this.cards.delete(name);
    }
    plots.forEach((plot, at) => {
      // What somebody chose for a plot stays, also while it is not drawn.
      const state = this.states.get(plot.name) ?? { log: false, stack: false, ratio: false, hidden: new Set() };
      this.states.set(plot.name, state);
      const card = this.cards.get(plot.name) ?? new Card(this, plot.name, state);
      this.cards.set(plot.name, card);
      if (this.grid.children[at] !== card.root) this.grid.insertBefore(card.root, this.grid.children[at] ?? null);
      card.describe(plot);
    });
    this.grid.dataset.count = String(Math.min(plots.length, 3));
    this.picker.describe(plots.map((plot) => plot.name), spec?.more ?? []);
    this.root.hidden = plots.length === 0 && !(spec?.more ?? []).length;
  }

  draw(spec, bins) {
    this.describe(spec);
    const floats = floatsOf(bins);
    for (const [mode, button] of this.buttons) {
      const cards = this.plots(mode);
      button.hidden = cards.length === 0;
      press(button, cards.length > 0 && cards.every((card) => card.state[mode]));
    }
    // All are read before any is changed: else each would make the browser lay out the page again.
    const widths = [...this.cards.values()].map((card) => card.body.clientWidth);
    [...this.cards.values()].forEach((card, i) => {
      const ends = card.plot.series.flatMap((series) => [series.values, series.variances]).filter(Boolean);
      const whole = ends.every(([from, count]) => from + count <= floats.length);
      if (whole && card.plot.series.length && widths[i] > 0) card.draw(floats, widths[i]);
    });
  }

  close() {
    this.sizes.disconnect();
  }
}

class Picker {
  constructor(parent, watch) {
    this.watch = watch;
    this.root = element("details", "picker", parent);
    this.label = element("summary", "tool", this.root);
    const panel = element("div", "panel", this.root);
    this.filter = element("input", "filter", panel);
    this.filter.type = "search";
    this.filter.placeholder = "Find…";
    this.filter.setAttribute("aria-label", "Find a histogram by its name");
    this.list = element("div", "choices", panel);
    this.filter.addEventListener("input", () => this.show());
    // In a notebook, keys would else be commands.
    panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        this.root.open = false;
        this.label.focus();
      }
      event.stopPropagation();
    });
  }

  describe(drawn, more) {
    const names = [...drawn, ...more];
    const key = JSON.stringify([drawn, more]);
    if (key === this.key) return;
    this.key = key;
    this.names = names;
    this.chosen = new Set(drawn);
    this.root.hidden = names.length < 2;
    setText(this.label, more.length ? `Plots: ${drawn.length} of ${names.length}` : "Plots");
    this.show();
  }

  show() {
    const wanted = this.filter.value.trim().toLowerCase();
    const found = this.names.filter((name) => name.toLowerCase().includes(wanted));
    this.list.replaceChildren();
    for (const name of found.slice(0, MOST_LISTED)) {
      const label = element("label", "choice", this.list);
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = this.chosen.has(name);
      box.addEventListener("change", () => {
        if (box.checked) this.chosen.add(name);
        else this.chosen.delete(name);
        this.watch(this.names.filter((one) => this.chosen.has(one)));
      });
      const text = document.createElement("span");
      text.textContent = name;
      label.append(box, text);
    }
    const rest = found.length - Math.min(found.length, MOST_LISTED);
    if (rest) element("div", "rest", this.list).textContent = `and ${rest} more: type to find them`;
  }
}

/** The numbers of a `Bytes` trait, which may begin anywhere in its buffer. */
function floatsOf(bins) {
  if (!bins?.byteLength) return new Float32Array(0);
  const whole = bins.byteLength - (bins.byteLength % 4);
  const buffer = bins.buffer ?? bins;
  const begin = bins.byteOffset ?? 0;
  return new Float32Array(begin % 4 ? buffer.slice(begin, begin + whole) : buffer, begin % 4 ? 0 : begin, whole / 4);
}
