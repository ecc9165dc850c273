// One figure: frame, ticks, step lines, heat map. Draws with elements that stay from one update to the next.

const SVG = "http://www.w3.org/2000/svg";
const TEXT_PX = 10.5;
const GLYPH_PX = 6.1;
const LOG_DECADES = 7;

function svgElement(tag, name, parent, attributes = {}) {
  const node = document.createElementNS(SVG, tag);
  node.setAttribute("class", `hepscale-run-${name}`);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.append(node);
  return node;
}

const px = (value) => Math.round(value * 10) / 10;

function shortened(text, most) {
  return text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text;
}

/** The bins of the series that are shown: lower and upper ends of the line and of its band. */
function layersOf(plot, floats, state, bins) {
  const layers = plot.series.map((series, index) => {
    const at = (part) => (part ? floats.subarray(part[0], part[0] + Math.min(part[1], bins)) : null);
    return { index, name: series.name, values: at(series.values), variances: at(series.variances) };
  }).filter((layer) => !state.hidden.has(layer.name));
  const finite = (value) => (Number.isFinite(value) ? value : 0);
  const total = new Float64Array(bins);
  for (const { values } of layers) for (let i = 0; i < bins; i++) total[i] += finite(values[i]);
  const norm = (i) => (state.ratio ? (total[i] ? 1 / total[i] : 0) : 1);
  const below = new Float64Array(bins);
  const variance = new Float64Array(bins);
  for (const layer of layers) {
    layer.top = new Float64Array(bins);
    layer.error = new Float64Array(bins);
    for (let i = 0; i < bins; i++) {
      const value = finite(layer.values[i]);
      const spread = Math.max(0, finite(layer.variances ? layer.variances[i] : Math.abs(value)));
      layer.top[i] = value * norm(i);
      layer.error[i] = Math.sqrt(spread) * Math.abs(norm(i));
      if (!state.stack) continue;
      below[i] = layer.top[i] += below[i];
      variance[i] += spread;
      layer.error[i] = Math.sqrt(variance[i]) * Math.abs(norm(i));
    }
  }
  return { layers, total };
}

/** The range of the upright axis; it moves seldom, or the eye would have nothing to hold on to. */
function rangeOf(layers, state, kept) {
  let high = 0;
  let low = 0;
  let least = Infinity;
  for (const { top, error } of layers) {
    for (let i = 0; i < top.length; i++) {
      high = Math.max(high, top[i] + error[i]);
      low = Math.min(low, top[i] - (top[i] < 0 ? error[i] : 0));
      if (top[i] > 0) least = Math.min(least, top[i]);
    }
  }
  if (state.log) {
    if (!(high > 0)) return { low: 0.1, high: 10 };
    const floor = Math.max(Math.min(least, 1e300), high / 10 ** LOG_DECADES) * 0.6;
    const bottom = 10 ** (Math.floor(Math.log10(floor) * 2) / 2);
    return { low: bottom, high: 10 ** (Math.ceil(Math.log10(high) * 4 + 0.4) / 4) };
  }
  if (state.ratio && low === 0) return { low, high: state.stack ? 1 : Math.min(Math.max(high, 1), 1.15) };
  if (low < 0) return { low: low * 1.08, high: Math.max(high * 1.08, -low * 0.1) };
  const still = kept && kept.log === state.log && high * 1.02 <= kept.high && high >= kept.high * 0.6;
  return { low, high: still ? kept.high : high > 0 ? high * 1.25 : 1 };
}

/** The path of a histogram: up from the base, along the bins, down again. */
function stepPath(places, base, y, tops) {
  let path = `M${places[0]} ${base}`;
  for (let i = 0; i < tops.length; i++) path += `V${px(y(tops[i]))}H${places[i + 1]}`;
  return `${path}V${base}`;
}

function bandPath(places, y, tops, errors) {
  let there = "";
  let back = "";
  for (let i = 0; i < tops.length; i++) {
    const upper = px(y(tops[i] + errors[i]));
    const lower = px(y(tops[i] - errors[i]));
    there += `${i ? "L" : "M"}${places[i]} ${upper}H${places[i + 1]}`;
    back = `L${places[i + 1]} ${lower}H${places[i]}${back}`;
  }
  return `${there}${back}Z`;
}

class Figure {
  constructor(parent) {
    this.canvas = null;
    this.svg = svgElement("svg", "svg", parent, { role: "img", tabindex: "0" });
    this.axes = svgElement("g", "axes", this.svg);
    this.lines = svgElement("g", "lines", this.svg);
    this.marker = svgElement("rect", "marker", this.svg, { visibility: "hidden" });
    this.paths = new Map();
    this.left = 0;
  }

  /** Frame and ticks; made anew only when something of them changed. */
  frame(width, height, x, y, right) {
    const yTicks = y.log ? logTicks(y.low, y.high, 6) : linearTicks(y.low, y.high, height / 38);
    const widest = Math.max(1, ...yTicks.map((tick) => tick.text.length));
    const yTexts = y.labels ? y.labels.map((label) => shortened(label, 9)) : null;
    const room = Math.max(yTexts ? Math.max(...yTexts.map((text) => text.length)) : widest, 2);
    // It grows only: else the picture would move with every digit that comes and goes.
    this.left = Math.max(this.left, px(room * GLYPH_PX + 9 + (y.label ? 14 : 0)));
    const box = { left: this.left, top: 8, right: width - right, bottom: height - (x.label ? 33 : 19) };
    const ends = [x.low, x.high, x.log, y.low, y.high];
    const key = JSON.stringify([width, height, box, ends, x.label, x.labels, yTicks, y.label, yTexts]);
    const toX = makeScale(x.low, x.high, box.left, box.right, x.log);
    const toY = makeScale(y.low, y.high, box.bottom, box.top, y.log);
    if (key !== this.key) {
      this.key = key;
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.axes.replaceChildren();
      this.upright(box, y, yTicks, yTexts, toY);
      this.along(box, x, toX);
      svgElement("path", "frame", this.axes, { d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` });
    }
    return { box, toX, toY };
  }

  upright(box, y, ticks, texts, toY) {
    const marks = texts
      ? texts.map((text, i) => ({ value: i + 0.5, text }))
      : ticks;
    const every = texts ? Math.ceil((texts.length * 13) / (box.bottom - box.top)) : 1;
    marks.forEach(({ value, text }, i) => {
      const at = px(toY(value));
      if (text && !y.plain) svgElement("path", "rule", this.axes, { d: `M${box.left} ${at}H${box.right}` });
      svgElement("path", "tick", this.axes, { d: `M${box.left} ${at}h${text ? -4 : -2.5}` });
      if (i % every === 0) this.text(box.left - 6, at + 3.6, text, "end");
    });
    if (y.label) {
      const node = this.text(0, 0, shortened(y.label, 30), "end", "label");
      node.setAttribute("transform", `translate(10 ${box.top}) rotate(-90)`);
    }
  }

  along(box, x, toX) {
    if (x.labels) {
      const slot = (box.right - box.left) / x.labels.length;
      const most = Math.floor(slot / GLYPH_PX);
      const every = most >= 3 ? 1 : Math.ceil((5 * GLYPH_PX) / slot);
      x.labels.forEach((label, i) => {
        if (i % every) return;
        const node = this.text(toX(i + 0.5), box.bottom + 14, shortened(label, Math.max(3, most * every)), "middle");
        svgElement("title", "tip", node).textContent = label;
      });
    } else {
      const count = (box.right - box.left) / 52;
      for (const { value, text } of x.log ? logTicks(x.low, x.high, count) : linearTicks(x.low, x.high, count)) {
        const at = px(toX(value));
        svgElement("path", "tick", this.axes, { d: `M${at} ${box.bottom}v${text ? 4 : 2.5}` });
        const anchor = at > box.right - 10 && text.length > 2 ? "end" : "middle";
        this.text(anchor === "end" ? box.right + 8 : at, box.bottom + 14, text, anchor);
      }
    }
    const room = Math.floor((box.right - box.left) / GLYPH_PX);
    if (x.label) this.text(box.right, box.bottom + 29, shortened(x.label, room), "end", "label");
  }

  text(x, y, text, anchor, name = "number") {
    const node = svgElement("text", name, this.axes, { x: px(x), y: px(y), "text-anchor": anchor });
    node.textContent = text;
    return node;
  }

  steps(plot, floats, state, width, height) {
    const bins = Math.max(1, ...plot.series.map((series) => series.values[1]));
    const axis = axisOf(plot.x, bins);
    const { layers, total } = layersOf(plot, floats, state, bins);
    this.range = { ...rangeOf(layers, state, this.range), log: state.log };
    const { edges } = axis;
    const x = { low: edges[0], high: edges[bins], log: axis.log, label: plot.x?.label, labels: axis.labels };
    const label = state.ratio ? "fraction of total" : "";
    const { box, toX, toY } = this.frame(width, height, x, { ...this.range, label }, 12);
    const clamp = (value) => Math.min(box.bottom + 1, Math.max(box.top - 4, toY(value)));
    const places = Array.from(edges, (edge) => px(toX(edge)));
    const base = px(clamp(state.log ? this.range.low : 0));
    const used = new Set();
    // The first of a stack lies lowest and is drawn last: each covers what is below it.
    for (const layer of layers) {
      used.add(layer.name);
      const { line, band } = this.pathsOf(layer, state);
      line.setAttribute("d", stepPath(places, base, clamp, layer.top));
      // Of a stack the band is that of the sum, and the sum of fractions has none.
      const bare = state.stack && (state.ratio || layer !== layers[layers.length - 1]);
      band.setAttribute("d", bare ? "" : bandPath(places, clamp, layer.top, layer.error));
    }
    for (const [name, { line, band }] of this.paths) {
      if (used.has(name)) continue;
      line.remove();
      band.remove();
      this.paths.delete(name);
    }
    const class_ = `hepscale-run-lines${state.stack ? " hepscale-run-stacked" : ""}${
      plot.series.length === 1 ? " hepscale-run-single" : ""}`;
    if (this.lines.getAttribute("class") !== class_) this.lines.setAttribute("class", class_);
    const at = (i) => layers.map((layer) => {
      const value = numberText(layer.values[i]);
      const spread = layer.variances ? layer.variances[i] : Math.abs(layer.values[i]);
      const text = `${value} ± ${errorText(Math.sqrt(Math.max(0, spread)))}`;
      return layers.length > 1 ? `${layer.name || "–"}: ${text}` : text;
    });
    this.place = { box, places, edges, labels: axis.labels, bins, at };
    return total.reduce((sum, value) => sum + value, 0);
  }

  pathsOf(layer, state) {
    let paths = this.paths.get(layer.name);
    if (!paths) {
      paths = { line: svgElement("path", "line", this.lines), band: svgElement("path", "band", this.lines) };
      this.paths.set(layer.name, paths);
    }
    const { line, band } = paths;
    const key = `${layer.index} ${state.stack}`;
    if (paths.key === key) return paths;
    paths.key = key;
    const colour = SERIES_COLOURS[layer.index % SERIES_COLOURS.length];
    line.style.setProperty("--hepscale-series", colour);
    band.style.setProperty("--hepscale-series", colour);
    line.setAttribute("stroke-dasharray", DASHES[Math.floor(layer.index / SERIES_COLOURS.length) % DASHES.length]);
    this.lines.prepend(line);
    this.lines.append(band);
    return paths;
  }

  map(plot, floats, state, width, height) {
    const given = plot.series[0].values;
    const values = floats.subarray(given[0], given[0] + given[1]);
    const columns = plot.x?.labels?.length || (plot.x?.edges?.length ?? 2) - 1;
    const rows = Math.max(1, Math.round(values.length / Math.max(1, columns)));
    const xAxis = axisOf(plot.x, columns);
    const yAxis = axisOf(plot.y, rows);
    let least = Infinity;
    let most = -Infinity;
    let sum = 0;
    for (const value of values) {
      if (!Number.isFinite(value)) continue;
      sum += value;
      most = Math.max(most, value);
      if (!state.log || value > 0) least = Math.min(least, value);
    }
    if (!state.log) least = Math.min(0, least);
    if (!(most > least)) most = least = state.log ? 1 : 0;
    const z = { low: Number.isFinite(least) ? least : 0, high: most > least ? most : least + 1, log: state.log };
    if (z.log) z.high = Math.max(z.high, z.low * 10);
    const side = (axis, name) => ({
      low: axis.edges[0], high: axis.edges[axis.edges.length - 1], log: axis.log, label: name, labels: axis.labels,
    });
    const ends = z.log ? logTicks(z.low, z.high, 5).filter((tick) => tick.text) : linearTicks(z.low, z.high, 5);
    this.right = Math.max(this.right ?? 0, 26 + GLYPH_PX * Math.max(...ends.map((tick) => tick.text.length)));
    const y = { ...side(yAxis, plot.y?.label), plain: true };
    const { box, toX, toY } = this.frame(width, height, side(xAxis, plot.x?.label), y, this.right);
    this.heat(values, xAxis.edges, yAxis.edges, z, { box, toX, toY, width, height });
    this.colourBar(ends, z, box);
    const places = Array.from(xAxis.edges, (edge) => px(toX(edge)));
    const heights = Array.from(yAxis.edges, (edge) => px(toY(edge)));
    this.place = { box, places, heights, edges: xAxis.edges, labels: xAxis.labels, yEdges: yAxis.edges,
      yLabels: yAxis.labels, bins: columns, at: (i, j) => [numberText(values[i * rows + j])] };
    return sum;
  }

  heat(values, xEdges, yEdges, z, { box, toX, toY, width, height }) {
    if (!this.canvas) {
      this.canvas = document.createElement("canvas");
      this.canvas.className = "hepscale-run-canvas";
      this.canvas.setAttribute("aria-hidden", "true");
      this.svg.before(this.canvas);
    }
    const scale = window.devicePixelRatio || 1;
    const size = [Math.round(width * scale), Math.round(height * scale)];
    if (this.canvas.width !== size[0] || this.canvas.height !== size[1]) [this.canvas.width, this.canvas.height] = size;
    const shade = makeScale(z.low, z.high, 0, 255, z.log);
    const rows = yEdges.length - 1;
    // Nothing is no colour, or an empty plane would look like a measured one.
    const colours = Uint32Array.from(values, (value) =>
      Number.isFinite(value) && value !== 0 && !(z.log && value < 0) ? HEAT[Math.max(0, Math.min(255, Math.round(shade(value))))] : 0);
    const wide = Math.max(1, Math.round((box.right - box.left) * scale));
    const tall = Math.max(1, Math.round((box.bottom - box.top) * scale));
    const owner = (edges, to, from, pixels) => {
      const which = new Int32Array(pixels);
      for (let i = 0; i + 1 < edges.length; i++) {
        const ends = [Math.abs(to(edges[i]) - from), Math.abs(to(edges[i + 1]) - from)].map((end) => Math.round(end * scale));
        which.fill(i, Math.min(...ends), Math.max(...ends));
      }
      return which;
    };
    const columnOf = owner(xEdges, toX, box.left, wide);
    const rowOf = owner(yEdges, toY, box.top, tall);
    const image = new ImageData(wide, tall);
    const pixels = new Uint32Array(image.data.buffer);
    for (let line = 0; line < tall; line++) {
      const begin = line * wide;
      if (line && rowOf[line] === rowOf[line - 1]) pixels.copyWithin(begin, begin - wide, begin);
      else for (let at = 0; at < wide; at++) pixels[begin + at] = colours[columnOf[at] * rows + rowOf[line]];
    }
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, ...size);
    context.putImageData(image, Math.round(box.left * scale), Math.round(box.top * scale));
    const strip = new ImageData(Math.round(10 * scale), tall);
    const shades = new Uint32Array(strip.data.buffer);
    for (let line = 0; line < tall; line++) {
      shades.fill(HEAT[Math.round(255 * (1 - line / Math.max(1, tall - 1)))], line * strip.width, (line + 1) * strip.width);
    }
    context.putImageData(strip, Math.round((box.right + 8) * scale), Math.round(box.top * scale));
  }

  colourBar(ticks, z, box) {
    const key = JSON.stringify([ticks, z, box]);
    if (this.barKey === key) return;
    this.barKey = key;
    this.bar?.remove();
    const axes = this.axes;
    this.bar = this.axes = svgElement("g", "colour-bar", this.svg);
    const to = makeScale(z.low, z.high, box.bottom, box.top, z.log);
    for (const { value, text } of ticks) {
      if (value >= z.low && value <= z.high) this.text(box.right + 21, to(value) + 3.6, text, "start");
    }
    this.axes = axes;
  }

  /** Marks a bin; returns what it holds, as text. */
  mark(i, j) {
    const { box, places, heights, edges, labels, yEdges, yLabels, at } = this.place;
    const [top, bottom] = heights ? [heights[j + 1], heights[j]] : [box.top, box.bottom];
    const area = { x: places[i], y: top, width: Math.max(1, places[i + 1] - places[i]), height: Math.max(1, bottom - top) };
    for (const [name, value] of Object.entries(area)) this.marker.setAttribute(name, px(value));
    this.marker.setAttribute("visibility", "visible");
    const span = (names, ends, k) => names?.[k] ?? `${numberText(ends[k])} to ${numberText(ends[k + 1])}`;
    const where = yEdges ? `${span(labels, edges, i)}; ${span(yLabels, yEdges, j)}` : span(labels, edges, i);
    return [where, ...at(i, j)];
  }

  unmark() {
    this.marker.setAttribute("visibility", "hidden");
  }

  /** The bin below a point of the screen, or null. */
  binAt(event) {
    if (!this.place) return null;
    const { places, heights, box } = this.place;
    const rect = this.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - rect.left, event.clientY - rect.top];
    if (x < box.left || x >= box.right || y < box.top || y > box.bottom) return null;
    const i = places.findIndex((place, k) => k + 1 < places.length && x >= place && x < places[k + 1]);
    const j = heights ? heights.findIndex((place, k) => k + 1 < heights.length && y <= place && y > heights[k + 1]) : 0;
    return i < 0 || j < 0 ? null : [i, j];
  }
}
