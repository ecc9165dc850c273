// Numbers, ticks, scales and colours: pure functions, no page.

// Petroff's ten, which CMS plots use: told apart also by those who see fewer colours.
const SERIES_COLOURS = [
  "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
  "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
];
const DASHES = ["", "5 3", "1.5 2"];

// Viridis, at 17 places; what is between is mixed.
const VIRIDIS = (
  "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c " +
  "1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725"
).split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

// 256 colours as a canvas keeps them (little-endian: alpha, blue, green, red).
const HEAT = Uint32Array.from({ length: 256 }, (_, i) => {
  const at = (i / 255) * (VIRIDIS.length - 1);
  const first = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const [red, green, blue] = VIRIDIS[first].map((from, k) =>
    Math.round(from + (at - first) * (VIRIDIS[first + 1][k] - from)));
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
});

const UNITS = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

function trimmed(value, digits) {
  const text = value.toFixed(Math.max(0, Math.min(digits, 20)));
  return (text.includes(".") ? text.replace(/\.?0+$/, "") : text).replace(/^-(?=0$)/, "").replace("-", "−");
}

function powerText(exponent) {
  if (exponent >= 0 && exponent < 3) return String(10 ** exponent);
  const digits = [...String(Math.abs(exponent))].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("");
  return `10${exponent < 0 ? "⁻" : ""}${digits}`;
}

/** A number for reading: 12,345; 1.234M; 0.0123; 1.2e-7. */
function numberText(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-4)) return value.toExponential(2).replace("-", "−");
  if (size >= 1e6) {
    const [unit, letter] = UNITS.find(([one]) => size >= one);
    return trimmed(value / unit, 3) + letter;
  }
  if (size >= 1e3 || Number.isInteger(value)) return Math.round(value).toLocaleString("en").replace("-", "−");
  return trimmed(value, 3 - Math.floor(Math.log10(size)));
}

/** An uncertainty: two digits say enough. */
function errorText(value) {
  return value > 1e-4 && value < 1e3 ? trimmed(value, 1 - Math.floor(Math.log10(value))) : numberText(value);
}

/** A count in a table: all of its digits, so that those below one another compare. */
function countText(value) {
  return Number.isInteger(value) && Math.abs(value) < 1e12 ? value.toLocaleString("en").replace("-", "−") : numberText(value);
}

/** At most about `count` round numbers from low to high, with the text of each. */
function linearTicks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((one) => one * power >= rough * 0.999) ?? 10);
  if (!(step > 0) || !Number.isFinite(step)) return [];
  const largest = Math.max(Math.abs(low), Math.abs(high));
  const [unit, letter] = largest >= 1e4 ? UNITS.find(([one]) => largest >= one) : [1, ""];
  const digits = Math.ceil(-Math.log10(step / unit) - 1e-9);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-6); i * step <= high + step * 1e-6; i++) {
    const value = i * step;
    const text = largest < 1e-3 ? value.toExponential(1).replace("-", "−") : trimmed(value / unit, digits);
    ticks.push({ value, text: value === 0 ? "0" : text + letter });
  }
  return ticks;
}

/** Powers of ten; where there are few of them also what is between. */
function logTicks(low, high, count) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  const every = Math.max(1, Math.ceil((last - first + 1) / Math.max(1, count)));
  const ticks = [];
  for (let at = first - 1; at <= last; at++) {
    if (at >= first && (at - first) % every === 0) ticks.push({ value: 10 ** at, text: powerText(at) });
    if (every > 1) continue;
    for (let digit = 2; digit < 10; digit++) {
      const value = digit * 10 ** at;
      const named = last - first < 2 && (digit === 2 || digit === 5);
      if (value >= low && value <= high) ticks.push({ value, text: named ? numberText(value) : "" });
    }
  }
  return ticks;
}

/** From a value to a place on the screen; `log` takes the logarithm first. */
function makeScale(low, high, from, to, log) {
  const of = log ? (value) => Math.log10(Math.max(value, low)) : (value) => value;
  const begin = of(low);
  const factor = (to - from) / (of(high) - begin || 1);
  return (value) => from + (of(value) - begin) * factor;
}

/** Edges for drawing: finite and growing, whatever the axis; `log` where bins widen by a factor. */
function axisOf(axis, bins) {
  const given = axis?.edges;
  const labels = axis?.labels?.length ? axis.labels : null;
  const plain = { edges: Float64Array.from({ length: bins + 1 }, (_, i) => i), labels, log: false };
  if (labels || !given || given.length !== bins + 1) return plain;
  const edges = Float64Array.from(given, (edge) => (edge === null ? NaN : Number(edge)));
  // Ends that are not finite are drawn as wide as their neighbours.
  if (!Number.isFinite(edges[0])) edges[0] = bins > 1 ? 2 * edges[1] - edges[2] : edges[1] - 1;
  if (!Number.isFinite(edges[bins])) edges[bins] = bins > 1 ? 2 * edges[bins - 1] - edges[bins - 2] : edges[0] + 1;
  for (let i = 0; i < bins; i++) if (!(edges[i + 1] > edges[i])) return plain;
  const factor = (edges[bins] / edges[0]) ** (1 / bins);
  const even = (edge, i) => Math.abs(Math.log(edge / (edges[0] * factor ** i))) < 0.05 * Math.log(factor);
  const log = edges[0] > 0 && bins > 2 && edges[bins] / edges[0] >= 20 && edges.every(even);
  return { edges, labels: null, log };
}
