// Draws one run: `run` and `failures` hold texts that come ready from Python (view/widget.py), `spec` and `bins` its plots.

const TRAITS = ["run", "failures", "spec", "bins"];

function element(tag, name, parent) {
  const node = document.createElement(tag);
  node.className = `hepscale-run-${name}`;
  parent.append(node);
  return node;
}

// Changing only what differs keeps a reader's selection and does not repeat itself to a screen reader.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setLines(list, lines, tag = "li") {
  while (list.children.length > lines.length) list.lastChild.remove();
  while (list.children.length < lines.length) list.append(document.createElement(tag));
  lines.forEach((line, i) => setText(list.children[i], line));
  list.hidden = lines.length === 0;
}

/** One line each, that unfolds; what a reader has unfolded stays so, as those that come are added below. */
function setFailures(list, failures) {
  while (list.children.length > failures.length) list.lastChild.remove();
  failures.forEach(([line, detail], i) => {
    const old = list.children[i];
    if (old?.dataset.line === line) return;
    const item = document.createElement("li");
    item.dataset.line = line;
    if (old) old.replaceWith(item);
    else list.append(item);
    if (!detail) return void (item.textContent = line);
    const folded = element("details", "failure", item);
    element("summary", "failure-line", folded).textContent = line;
    const text = element("pre", "failure-text", folded);
    text.textContent = detail;
    text.tabIndex = 0;
    text.setAttribute("aria-label", `Details of ${line}`);
    // In a notebook, keys would else be commands.
    folded.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && folded.open) {
        folded.open = false;
        folded.firstChild.focus();
      }
      event.stopPropagation();
    });
  });
  list.hidden = failures.length === 0;
}

function setFacts(list, facts) {
  while (list.children.length > facts.length) list.lastChild.remove();
  while (list.children.length < facts.length) {
    const pair = document.createElement("div");
    pair.append(document.createElement("dt"), document.createElement("dd"));
    list.append(pair);
  }
  facts.forEach(([name, value], i) => {
    setText(list.children[i].children[0], name);
    setText(list.children[i].children[1], value);
  });
}

function build(el, model, redraw) {
  const root = element("section", "root", el);
  const head = element("div", "head", root);
  const desc = element("span", "desc", head);
  const side = element("span", "side", head);
  const chunks = element("span", "chunks", side);
  const bar = element("div", "bar", root);
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "100");
  const fill = element("div", "fill", bar);
  const facts = element("dl", "facts", root);
  const unstop = stopButton(model, side);
  const say = (content) => tell(model, content, () => {}).catch(() => {});
  const board = new Board(element("div", "histograms", root), redraw, say);
  const failures = element("ul", "failures", root);
  failures.setAttribute("aria-label", "Failed chunks");
  failures.setAttribute("aria-live", "polite");
  const notices = element("ul", "notices", root);
  notices.setAttribute("aria-label", "Notices");
  notices.setAttribute("aria-live", "polite");
  return { root, desc, chunks, bar, fill, facts, failures, notices, board, unstop };
}

function draw(nodes, run, failures) {
  const percent = Number(run.percent) || 0;
  nodes.root.setAttribute("aria-label", run.desc ?? "Run");
  setText(nodes.desc, run.desc ?? "");
  setText(nodes.chunks, `${run.chunks ?? ""} · ${Math.floor(percent)} %`);
  nodes.bar.setAttribute("aria-label", `${run.desc ?? "Run"}, progress`);
  nodes.bar.setAttribute("aria-valuenow", String(Math.round(percent)));
  nodes.bar.setAttribute("aria-valuetext", run.chunks ?? "");
  nodes.fill.style.width = `${percent}%`;
  setFacts(nodes.facts, run.facts ?? []);
  setFailures(nodes.failures, failures);
  setLines(nodes.notices, run.notices ?? []);
  nodes.root.classList.toggle("hepscale-run-has-failures", failures.length > 0);
}

function render({ model, el }) {
  let frame = 0;
  const drawNow = () => {
    frame = 0;
    draw(nodes, model.get("run") ?? {}, model.get("failures") ?? []);
    nodes.board.draw(model.get("spec"), model.get("bins"));
  };
  // One drawing a screen refresh, whatever the rate of the messages.
  const drawSoon = () => {
    frame ||= requestAnimationFrame(drawNow);
  };
  const nodes = build(el, model, drawSoon);
  for (const trait of TRAITS) model.on(`change:${trait}`, drawSoon);
  drawNow();
  return () => {
    for (const trait of TRAITS) model.off(`change:${trait}`, drawSoon);
    cancelAnimationFrame(frame);
    nodes.board.close();
    nodes.unstop();
  };
}

export default { render };
