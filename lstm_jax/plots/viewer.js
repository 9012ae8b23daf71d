// The viewer of gates and states. `description` has the tokens and the names and ranges of the quantities.
// Values are codes of 8 bits, unit by unit: values[quantity][unit * T + t]. Code 255 stands for NaN and infinity.

const description = JSON.parse(takeText("description"));
const { tokens, units: unitCount, quantities } = description;
const T = tokens.length;
const LEVELS = 254;
const NOT_FINITE = 255;
const values = [];

const state = {
  quantity: 0,
  unit: 0,
  cursor: 0,
  hovered: null, // the token under the pointer
  hoveredUnit: null, // the unit under the pointer
  anchor: null, // where the selection began, while it grows
  selection: null, // [start, end): the selected tokens
  found: [], // units active over the selection
  matches: [], // [start, end) of other places
};

const element = (id) => document.getElementById(id);
const text = element("text");
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const count = (number, noun, plural = noun + "s") => `${number.toLocaleString("en")} ${number === 1 ? noun : plural}`;

// --- reading the file -----------------------------------------------------------------------------------------------

/** The text of a script element. The element is removed, so that the page does not keep two copies. */
function takeText(id) {
  const script = document.getElementById(id);
  script.remove();
  return script.textContent;
}

/** Decodes base64 in parts, and lets the page respond between them. */
async function decode(base64) {
  const PART = 4 << 20; // a multiple of 4
  const padding = base64.endsWith("==") ? 2 : base64.endsWith("=") ? 1 : 0;
  const bytes = new Uint8Array((base64.length / 4) * 3 - padding);
  for (let start = 0; start < base64.length; start += PART) {
    const part = base64.slice(start, start + PART);
    const target = bytes.subarray((start / 4) * 3);
    if (Uint8Array.fromBase64) {
      target.set(Uint8Array.fromBase64(part));
    } else {
      const binary = atob(part);
      for (let k = 0; k < binary.length; k++) target[k] = binary.charCodeAt(k);
    }
    await pause();
  }
  return bytes;
}

/** Lets the browser handle input and draw. */
function pause() {
  return globalThis.scheduler?.yield ? scheduler.yield() : new Promise((resolve) => setTimeout(resolve));
}

/** Calls work(0), ..., work(n - 1) in parts of 10 ms. Stops and returns false once isCurrent() is false. */
async function inParts(n, work, isCurrent = () => true) {
  let started = performance.now();
  for (let k = 0; k < n; k++) {
    work(k);
    if (performance.now() - started > 10) {
      await pause();
      if (!isCurrent()) return false;
      started = performance.now();
    }
  }
  return isCurrent();
}

// --- values ---------------------------------------------------------------------------------------------------------

const codeAt = (q, unit, t) => values[q][unit * T + t];
const isDiverging = (q) => quantities[q].low[0] === -quantities[q].high[0];

/** The value that a code stands for: each unit has a range of its own, or all have the same. */
function valueOf(q, unit, code) {
  const [low, high] = [quantities[q].low[unit], quantities[q].high[unit]];
  return low + ((high - low) * code) / LEVELS;
}

const rangeSize = (q, unit) => Math.max(Math.abs(quantities[q].low[unit]), Math.abs(quantities[q].high[unit]));

/** The part of the range: from 0 to 1, or from -1 to 1 if the range is symmetric about 0. */
const partOfRange = (q, code) => (isDiverging(q) ? (2 * code) / LEVELS - 1 : code / LEVELS);

/** A number as text, with digits that suit numbers up to `scale`. */
function formatNumber(number, scale = Math.abs(number) || 1) {
  const text = scale < 0.05 || scale >= 1e5 ? number.toExponential(1) : number.toFixed(scale < 100 ? 2 : 0);
  return (Number(text) === 0 ? text.replace("-", "") : text).replaceAll("-", "−");
}

/** The value of a code as text. The ends of the range stand for values beyond it, where there are any. */
function formatCode(q, unit, code) {
  if (code === NOT_FINITE) return "not finite";
  const sign = code === 0 && quantities[q].below ? "≤ " : code === LEVELS && quantities[q].above ? "≥ " : "";
  return sign + formatNumber(valueOf(q, unit, code), rangeSize(q, unit));
}

/** All quantities of a unit at a token as text. */
function unitText(unit, t) {
  const known = quantities.map(({ name }, q) => values[q] && `${name} ${formatCode(q, unit, codeAt(q, unit, t))}`);
  return `unit ${unit}: ${known.filter(Boolean).join(", ")}`;
}

// --- colours --------------------------------------------------------------------------------------------------------

// Colour-blind safe: blues from low to high, or orange for negative and blue for positive values. The light and
// the dark palette both begin near the colour of the page's panels.
const BLUES = {
  light: ["#ffffff", "#d9e8f5", "#a6cde6", "#5ba3cf", "#2171b5", "#08306b"],
  dark: ["#15191f", "#14304a", "#1d5588", "#3b86c4", "#7fbbe6", "#d8efff"],
};
const ORANGES = {
  light: ["#ffffff", "#fee3bf", "#fdb863", "#e08214", "#b35806", "#6b3006"],
  dark: ["#15191f", "#3c2512", "#7d430d", "#c26a15", "#f5a04a", "#ffe0b8"],
};
let palette = []; // of the chosen theme: {sequential, diverging}, each 255 colours by code

function mix(stops, position) {
  const channels = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
  const k = Math.min(Math.floor(position * (stops.length - 1)), stops.length - 2);
  const part = position * (stops.length - 1) - k;
  const [from, to] = [channels(stops[k]), channels(stops[k + 1])];
  return from.map((channel, c) => Math.round(channel + part * (to[c] - channel)));
}

/** Black or white, whichever has the higher contrast. */
function inkOn(rgb) {
  const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

function makePalette(theme) {
  const codes = Array.from({ length: LEVELS + 1 }, (_, code) => code / LEVELS);
  const colour = (rgb) => ({ fill: `rgb(${rgb.join(" ")})`, ink: inkOn(rgb) });
  palette = {
    sequential: codes.map((p) => colour(mix(BLUES[theme], p))),
    diverging: codes.map((p) => colour(mix(p < 0.5 ? ORANGES[theme] : BLUES[theme], Math.abs(2 * p - 1)))),
  };
  const rules = ["sequential", "diverging"].flatMap((kind) =>
    palette[kind].map(({ fill, ink }, code) => `.${kind} .v${code}{background:${fill};color:${ink}}`),
  );
  rules.push(`.v255{background:repeating-linear-gradient(45deg,#0000 0 5px,#d0006f 5px 6.5px)}`);
  element("palette").textContent = rules.join("\n");
}

const colours = (q) => (isDiverging(q) ? palette.diverging : palette.sequential);

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  element("theme").setAttribute("aria-pressed", theme === "dark");
  makePalette(theme);
  drawLegend();
  redraw("grid", "chart");
}

function drawLegend() {
  const q = state.quantity;
  const { name } = quantities[q];
  const [low, middle, high] = [0, LEVELS / 2, LEVELS].map((code) => formatCode(q, state.unit, code));
  const stops = Array.from({ length: 17 }, (_, k) => colours(q)[Math.round((k / 16) * LEVELS)]);
  element("legend-low").textContent = low;
  element("legend-high").textContent = high;
  element("legend-middle").textContent = middle;
  element("legend-middle").style.color = stops[8].ink;
  const scale = element("legend-scale");
  scale.style.background = `linear-gradient(to right, ${stops.map(({ fill }) => fill)})`;
  scale.setAttribute("aria-label", `Colours of ${name} of unit ${state.unit}: from ${low} over ${middle} to ${high}`);
  text.classList.toggle("diverging", isDiverging(q));
  text.classList.toggle("sequential", !isDiverging(q));
}

// --- features of the text -------------------------------------------------------------------------------------------

// Each feature is the state after the token has been read, as the network's state is: an opening quote is inside.
const first = (token) => token.trim() || token;
const perToken = (test) => (t) => Number(test(tokens[t]));
const COMPUTED = {
  "position in line": eachLine((line) => line.position),
  "indentation": eachLine((line) => line.indentation),
  "inside quotes": eachCharacter((open, c, previous) => {
    if (c === '"') return 1 - open;
    if (c === "“" || c === "«") return 1;
    if (c === "”" || c === "»" || (c === "\n" && previous === "\n")) return 0; // a paragraph ends a quotation
    return open;
  }),
  "inside brackets": eachCharacter((depth, c) => {
    if ("([{".includes(c)) return depth + 1;
    return ")]}".includes(c) ? Math.max(depth - 1, 0) : depth;
  }),
  "position in word": eachCharacter((length, c) => (/[\p{L}\p{N}_]/u.test(c) ? length + 1 : 0)),
  "is space": perToken((token) => /^[^\S\n]+$/u.test(token)),
  "is line break": perToken((token) => token.includes("\n")),
  "is capital": perToken((token) => /^\p{Lu}/u.test(first(token))),
  "is vowel": perToken((token) => /^[aeiouäöüáéíóúàèìòùâêîôû]/iu.test(first(token))),
  "is digit": perToken((token) => /^\p{N}/u.test(first(token))),
  "is punctuation": perToken((token) => /^\p{P}/u.test(first(token))),
  "length of token": perToken((token) => token.length),
  "position in text": (t) => t,
};

/** A feature that is carried from character to character. */
function eachCharacter(next) {
  let carried = 0;
  let previous = "";
  return (t) => {
    if (t === 0) carried = 0;
    for (const c of tokens[t]) {
      carried = next(carried, c, previous);
      previous = c;
    }
    return carried;
  };
}

/** A feature of the line so far: tokens read, and columns of white space at its beginning. */
function eachLine(read) {
  let line;
  return (t) => {
    if (t === 0 || tokens[t - 1].includes("\n")) line = { position: 0, indentation: 0, inside: true };
    line.position++;
    for (const c of tokens[t]) {
      if (!/\s/u.test(c)) line.inside = false;
      else if (line.inside && c !== "\n") line.indentation += c === "\t" ? 4 - (line.indentation % 4) : 1;
    }
    return read(line);
  };
}

const featureCache = new Map();

async function feature(name) {
  if (!featureCache.has(name)) {
    const column = new Float32Array(T);
    await inParts(Math.ceil(T / 1000), (part) => {
      for (let t = part * 1000; t < Math.min(T, (part + 1) * 1000); t++) column[t] = COMPUTED[name](t);
    });
    featureCache.set(name, column);
  }
  return featureCache.get(name);
}

// --- statistics of units --------------------------------------------------------------------------------------------

/** Pearson's correlation of codes[offset ...] with x, without the tokens where the value is not finite. */
function correlation(codes, offset, x) {
  let [n, sx, sy, sxx, syy, sxy] = [0, 0, 0, 0, 0, 0];
  const shift = x[0]; // closer to the mean than 0, for precision
  for (let t = 0; t < T; t++) {
    const y = codes[offset + t];
    if (y === NOT_FINITE) continue;
    const a = x[t] - shift;
    n++;
    sx += a;
    sy += y;
    sxx += a * a;
    syy += y * y;
    sxy += a * y;
  }
  const scale = Math.sqrt((n * sxx - sx * sx) * (n * syy - sy * sy));
  return scale > 0 ? clamp((n * sxy - sx * sy) / scale, -1, 1) : 0;
}

function meanAndVariance(codes, offset, start, end) {
  let [n, sum, squares] = [0, 0, 0];
  for (let t = offset + start; t < offset + end; t++) {
    const code = codes[t];
    if (code === NOT_FINITE) continue;
    n++;
    sum += code;
    squares += code * code;
  }
  const mean = n ? sum / n : NaN;
  return [mean, n ? Math.max(squares / n - mean * mean, 0) : NaN];
}

/** How each unit is sorted: the statistic, its note, and whether large ones of both signs come first. */
const SORTS = {
  index: { note: "value at the token" },
  variance: { note: "variance" },
  selection: { note: "mean / range" },
  correlation: { note: "correlation", bySize: true },
};

const statisticCache = new Map();

/** The statistic of each unit, or null if a newer request replaced this one. */
async function statistic(sort, q, name, selection, isCurrent) {
  const key = [sort, q, sort === "correlation" && name, sort === "selection" && selection].join();
  if (statisticCache.has(key)) return statisticCache.get(key);
  const codes = values[q];
  const { low, high } = quantities[q];
  const result = new Float64Array(unitCount);
  const x = sort === "correlation" ? await feature(name) : null;
  const work = {
    variance: (unit) => (result[unit] = meanAndVariance(codes, unit * T, 0, T)[1] * ((high[unit] - low[unit]) / LEVELS) ** 2),
    selection: (unit) => (result[unit] = partOfRange(q, meanAndVariance(codes, unit * T, ...selection)[0])),
    correlation: (unit) => (result[unit] = correlation(codes, unit * T, x)),
  }[sort];
  if (!(await inParts(unitCount, work, isCurrent))) return null;
  if (sort !== "selection") statisticCache.set(key, result);
  return result;
}

// --- the list of units ----------------------------------------------------------------------------------------------

let order = Array.from({ length: unitCount }, (_, unit) => unit);
let shownStatistic = null; // null: sorted by index, and the list shows the values at the token
let sorting = 0;

const unitRows = order.map((unit) => {
  const row = document.createElement("div");
  row.className = "unit";
  row.id = `unit-${unit}`;
  row.setAttribute("role", "option");
  row.append(...["span", "span", "span"].map((tag) => document.createElement(tag)));
  row.children[0].textContent = `Unit ${unit}`;
  row.children[1].className = "bar";
  row.children[1].append(document.createElement("i"));
  row.addEventListener("click", () => chooseUnit(unit));
  return row;
});
element("units").append(...unitRows);

async function sortUnits() {
  const run = ++sorting;
  const isCurrent = () => run === sorting;
  const sort = element("sort").value;
  const q = state.quantity;
  element("feature-label").hidden = sort !== "correlation";
  const missing = sort === "selection" && !state.selection;
  const computed = sort === "index" || missing;
  element("units").setAttribute("aria-busy", "true");
  element("units-note").textContent = missing ? "select a span of the text first" : SORTS[sort].note;
  const numbers = computed
    ? null
    : await statistic(sort, q, element("feature").value, state.selection, isCurrent);
  if (!isCurrent()) return;
  shownStatistic = numbers;
  const key = SORTS[sort].bySize ? Math.abs : (number) => number;
  const rank = (unit) => (Number.isNaN(numbers[unit]) ? -Infinity : key(numbers[unit]));
  order = Array.from({ length: unitCount }, (_, unit) => unit);
  if (numbers) order.sort((a, b) => rank(b) - rank(a) || a - b);
  element("units").append(...order.map((unit) => unitRows[unit]));
  drawUnits();
  element("units").setAttribute("aria-busy", "false");
  element("units").scrollTop = 0;
  redraw("chart");
}

/** The numbers and bars of the list: the statistic, or the values at the token. */
function drawUnits() {
  const q = state.quantity;
  const t = shownToken();
  const sort = shownStatistic ? element("sort").value : "index";
  const isSigned = sort === "correlation" || (sort !== "variance" && isDiverging(q));
  const most = sort === "variance" ? shownStatistic.reduce((a, b) => Math.max(a, b || 0), 0) || 1 : 1;
  for (let unit = 0; unit < unitCount; unit++) {
    const code = codeAt(q, unit, t);
    const size = shownStatistic ? shownStatistic[unit] / most : code === NOT_FINITE ? NaN : partOfRange(q, code);
    const length = Math.abs(size || 0) * (isSigned ? 50 : 100);
    const [, { firstChild: bar }, number] = unitRows[unit].children;
    bar.className = size < 0 ? "negative" : "";
    bar.style.width = `${length}%`;
    bar.style.left = `${isSigned ? 50 - (size < 0 ? length : 0) : 0}%`;
    if (!shownStatistic) number.textContent = formatCode(q, unit, code);
    else number.textContent = Number.isNaN(size) ? "not finite" : formatNumber(shownStatistic[unit], sort === "variance" ? undefined : 1);
  }
}

function chooseUnit(unit) {
  state.unit = clamp(unit, 0, unitCount - 1);
  unitRows.forEach((row, k) => row.setAttribute("aria-selected", k === state.unit));
  element("units").setAttribute("aria-activedescendant", `unit-${state.unit}`);
  const [row, list] = [unitRows[state.unit], element("units")];
  if (list.clientHeight) {
    const top = row.offsetTop - list.offsetTop;
    list.scrollTop = clamp(list.scrollTop, top + row.offsetHeight - list.clientHeight + 2, top);
  }
  drawLegend();
  redraw("text", "grid", "chart", "status", "found");
}

/** The unit that is `step` places further in the list. */
function moveUnit(step) {
  chooseUnit(order[clamp(order.indexOf(state.unit) + step, 0, unitCount - 1)]);
}

function chooseQuantity(q) {
  if (!values[q]) return;
  state.quantity = q;
  element("quantities").childNodes.forEach((button, k) => {
    button.setAttribute("aria-checked", k === q);
    button.tabIndex = k === q ? 0 : -1;
  });
  element("threshold").value = defaultThreshold();
  drawLegend();
  sortUnits();
  findUnits();
  redraw("text", "grid", "chart", "status");
}

// --- the layout of the text -----------------------------------------------------------------------------------------

const ROW = 22; // pixels, as in the style sheet
const GUTTER = 62; // pixels before the first column
// Words without spaces are set apart. Characters, and tokens that bring their own spaces, are not.
const GAP = tokens.some((token) => [...token].length > 1) && !tokens.some((token) => token.includes(" ")) ? 1 : 0;
let layout = null; // {columns, rowStart, column, width}, rowStart[rows] = T
let letterWidth = 8;

const shownTokens = new Map(); // token: {text, columns, faint}

/** How a token is shown: white space and other invisible characters get a sign. */
function shown(token) {
  let result = shownTokens.get(token);
  if (!result) {
    const text = token === "" ? "∅" : [...token].map(visible).join("");
    const plain = /^[\x20-\x7e·↵→]*$/.test(text);
    const columns = plain ? text.length : Math.max(1, Math.ceil(measure(text) / letterWidth - 0.05));
    result = { text, columns, faint: /^\s*$/u.test(token) };
    shownTokens.set(token, result);
  }
  return result;
}

function visible(c) {
  const code = c.codePointAt(0);
  if (c === " ") return "·";
  if (c === "\n") return "↵";
  if (c === "\t") return "→";
  if (code < 32) return String.fromCodePoint(0x2400 + code); // control pictures
  if (code === 127) return "␡";
  if (/\p{M}/u.test(c)) return "◌" + c; // a combining mark
  if (/[\p{Cc}\p{Cf}\p{Cs}\p{Zs}\p{Zl}\p{Zp}]/u.test(c)) return `<${code.toString(16).toUpperCase()}>`;
  return c;
}

const ruler = document.createElement("canvas").getContext("2d");
ruler.font = `14px ${getComputedStyle(text).fontFamily}`;
const measure = (words) => ruler.measureText(words).width;

/** Distributes the tokens over rows, after white space if possible. */
function layOut() {
  letterWidth = measure("0".repeat(100)) / 100;
  const columns = Math.max(10, Math.floor((text.clientWidth - GUTTER - 8) / letterWidth));
  if (layout?.columns === columns) return;
  const rowStart = [0];
  const column = new Uint16Array(T);
  const width = new Uint16Array(T);
  let [x, rowBegin, lastBreak] = [0, 0, 0];
  const breakBefore = (t) => {
    rowStart.push(t);
    [x, rowBegin, lastBreak] = [0, t, t];
  };
  for (let t = 0; t < T; t++) {
    const { columns: needed, faint } = shown(tokens[t]);
    width[t] = Math.min(tokens[t] === "\t" ? 4 - (x % 4) : needed, columns);
    if (x + width[t] > columns && t > rowBegin) {
      breakBefore(lastBreak > rowBegin ? lastBreak : t);
      t = rowBegin - 1; // lay the moved tokens out again
      continue;
    }
    column[t] = x;
    x += width[t] + GAP;
    if (tokens[t].includes("\n") && t + 1 < T) breakBefore(t + 1);
    else if (faint || GAP || /\s$/u.test(tokens[t])) lastBreak = t + 1;
    else if (/^\s/u.test(tokens[t])) lastBreak = t;
  }
  layout = { columns, rowStart: Uint32Array.from([...rowStart, T]), column, width };
  rowElements.forEach((row) => row.remove());
  rowElements.clear();
  element("lines").style.height = `${rowStart.length * ROW}px`;
  text.setAttribute("aria-rowcount", rowStart.length);
  text.setAttribute("aria-colcount", columns);
}

/** The row of a token, by bisection. */
function rowOf(t) {
  const { rowStart } = layout;
  let [low, high] = [0, rowStart.length - 2];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (rowStart[middle] <= t) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** The token of a row that covers a column, or the one before it. */
function tokenInRow(row, column) {
  const { rowStart } = layout;
  let t = rowStart[row];
  while (t + 1 < rowStart[row + 1] && layout.column[t + 1] <= column) t++;
  return t;
}

function tokenAtPoint(clientX, clientY) {
  const box = text.getBoundingClientRect();
  const y = clamp(clientY - box.top, 0, box.height - 1) + text.scrollTop;
  const row = clamp(Math.floor(y / ROW), 0, layout.rowStart.length - 2);
  return tokenInRow(row, (clientX - box.left - GUTTER) / letterWidth);
}

// --- drawing --------------------------------------------------------------------------------------------------------

const rowElements = new Map(); // of the rows near the visible part
const waiting = new Set();
const inMatch = new Uint8Array(T);

/** Draws the named parts before the next frame. */
function redraw(...parts) {
  if (!layout) return;
  if (!waiting.size) requestAnimationFrame(drawWaiting);
  parts.forEach((part) => waiting.add(part));
}

function drawWaiting() {
  const parts = new Set(waiting);
  waiting.clear();
  if (parts.has("text")) drawText();
  if (parts.has("grid")) drawGrid();
  if (parts.has("chart")) drawChart();
  if (parts.has("found")) markFound();
  if (parts.has("status")) {
    drawStatus();
    if (!shownStatistic) drawUnits();
  }
}

const shownToken = () => state.hovered ?? state.cursor;

function tokenClass(t) {
  let name = `v${codeAt(state.quantity, state.unit, t)}`;
  if (shown(tokens[t]).faint) name += " faint";
  if (isSelected(t)) name += " selected";
  else if (inMatch[t]) name += " match";
  return t === state.cursor ? name + " cursor" : name;
}

const isSelected = (t) => state.selection !== null && state.selection[0] <= t && t < state.selection[1];

/** Makes the rows near the visible part, removes the others, and sets the colours of all. */
function drawText() {
  const rows = layout.rowStart.length - 1;
  const from = Math.max(0, Math.floor(text.scrollTop / ROW) - 6);
  const to = Math.min(rows, Math.ceil((text.scrollTop + text.clientHeight) / ROW) + 6);
  for (const [row, shownRow] of rowElements) {
    if (row < from || row >= to) {
      shownRow.remove();
      rowElements.delete(row);
    }
  }
  for (let row = to - 1; row >= from; row--) {
    if (!rowElements.has(row)) {
      rowElements.set(row, makeRow(row));
      element("lines").insertBefore(rowElements.get(row), rowElements.get(row + 1) ?? null);
    }
    for (const cell of rowElements.get(row).children) {
      const name = tokenClass(cell.token);
      if (cell.drawn !== name) {
        cell.drawn = name;
        cell.className = name;
        cell.ariaSelected = isSelected(cell.token);
      }
    }
  }
  text.setAttribute("aria-activedescendant", `token-${state.cursor}`);
}

const NAMES = { " ": "space", "\n": "line break", "\t": "tab" };

function makeRow(row) {
  const line = document.createElement("div");
  line.className = "row";
  line.setAttribute("role", "row");
  line.ariaRowIndex = row + 1;
  line.style.top = `${row * ROW}px`;
  line.dataset.start = layout.rowStart[row];
  for (let t = layout.rowStart[row]; t < layout.rowStart[row + 1]; t++) {
    const cell = document.createElement("span");
    cell.token = t;
    cell.id = `token-${t}`;
    cell.setAttribute("role", "gridcell");
    if (tokens[t] in NAMES) cell.ariaLabel = NAMES[tokens[t]];
    cell.textContent = shown(tokens[t]).text;
    cell.style.left = `${GUTTER + layout.column[t] * letterWidth}px`;
    cell.style.width = `${layout.width[t] * letterWidth}px`;
    line.append(cell);
  }
  return line;
}

/** A canvas of the given height in CSS pixels, cleared, and its context and width. */
function prepare(canvas, height) {
  const scale = globalThis.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  if (canvas.style.height !== `${height}px`) canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.font = "12px system-ui, sans-serif";
  return [context, width];
}

const styleColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

// The grid of all units: for each quantity a name and, below it, cells in rows.
const TITLE = 17;

function gridShape(width) {
  let size = 22;
  while (size > 5 && Math.ceil(unitCount / Math.floor(width / size)) * size > 44) size--;
  const columns = Math.min(unitCount, Math.floor(width / size));
  const rows = Math.ceil(unitCount / columns);
  const cellWidth = Math.min(width / columns, rows === 1 ? 72 : size);
  return { columns, rows, cellWidth, size, block: TITLE + rows * size + 5 };
}

function drawGrid() {
  const canvas = element("grid");
  const shape = gridShape(canvas.clientWidth);
  const [context] = prepare(canvas, shape.block * quantities.length);
  const t = shownToken();
  const { columns, cellWidth, size, block } = shape;
  const gap = size > 9 ? 1 : 0.5;
  const line = styleColour("--line");
  const outline = (unit, q, colour, thickness) => {
    context.strokeStyle = styleColour(colour);
    context.lineWidth = thickness;
    const [x, y] = [(unit % columns) * cellWidth, q * block + TITLE + Math.floor(unit / columns) * size];
    context.strokeRect(x + thickness / 2 - 0.5, y + thickness / 2 - 0.5, cellWidth - thickness + 0.5, size - thickness + 0.5);
  };
  quantities.forEach(({ name }, q) => {
    if (!values[q]) return;
    context.fillStyle = styleColour("--faint");
    context.textAlign = "left";
    context.fillText(name, 1, q * block + 12);
    const fills = colours(q);
    context.strokeStyle = line;
    context.lineWidth = 1;
    for (let unit = 0; unit < unitCount; unit++) {
      const code = codeAt(q, unit, t);
      const [x, y] = [(unit % columns) * cellWidth, q * block + TITLE + Math.floor(unit / columns) * size];
      context.fillStyle = code === NOT_FINITE ? "#d0006f" : fills[code].fill;
      context.fillRect(x, y, cellWidth - gap, size - gap);
      if (size > 9) context.strokeRect(x + 0.5, y + 0.5, cellWidth - gap - 1, size - gap - 1);
      if (cellWidth >= 44 && code !== NOT_FINITE) {
        context.fillStyle = fills[code].ink;
        context.textAlign = "center";
        context.fillText(formatCode(q, unit, code), x + cellWidth / 2, y + size / 2 + 4);
      }
    }
    outline(state.unit, q, "--accent", 2.5);
    if (state.hoveredUnit !== null) outline(state.hoveredUnit, q, "--ink", 1.5);
  });
  const unit = state.hoveredUnit ?? state.unit;
  const words = unitText(unit, t);
  element("grid-status").textContent = words[0].toUpperCase() + words.slice(1);
  canvas.setAttribute("aria-valuemax", unitCount - 1);
  canvas.setAttribute("aria-valuenow", state.unit);
  canvas.setAttribute("aria-valuetext", unitText(state.unit, t));
}

function unitAtPoint(event) {
  const canvas = element("grid");
  const { columns, rows, cellWidth, size, block } = gridShape(canvas.clientWidth);
  const row = Math.floor(((event.offsetY % block) - TITLE) / size);
  const column = Math.floor(event.offsetX / cellWidth);
  const unit = row * columns + column;
  return row >= 0 && row < rows && column >= 0 && column < columns && unit < unitCount ? unit : null;
}

// The chart of one unit over time.
const MARGIN = { left: 54, right: 8, top: 6, bottom: 20 };
const DASHES = [[3, 2], [6, 3], [1.5, 2.5], [8, 3, 2, 3]]; // of the lines that are not chosen

function chartWindow() {
  const n = Math.min(Number(element("window").value), T);
  return [clamp(state.cursor - Math.floor(n / 2), 0, T - n), n];
}

function drawChart() {
  const canvas = element("chart");
  const [context, width] = prepare(canvas, 130);
  const [start, n] = chartWindow();
  const plotWidth = width - MARGIN.left - MARGIN.right;
  const plotHeight = 130 - MARGIN.top - MARGIN.bottom;
  const x = (t) => MARGIN.left + ((t - start + 0.5) / n) * plotWidth;
  const y = (part) => MARGIN.top + (1 - part) * plotHeight;
  const edge = (t) => MARGIN.left + ((t - start) / n) * plotWidth;

  if (state.selection) {
    context.fillStyle = styleColour("--selected");
    context.globalAlpha = 0.15;
    const [from, to] = state.selection.map((t) => clamp(edge(t), MARGIN.left, width - MARGIN.right));
    context.fillRect(from, MARGIN.top, to - from, plotHeight);
    context.globalAlpha = 1;
  }
  context.textAlign = "right";
  context.lineWidth = 1;
  for (const part of [0, 0.5, 1]) {
    context.strokeStyle = styleColour("--line");
    context.beginPath();
    context.moveTo(MARGIN.left, y(part));
    context.lineTo(width - MARGIN.right, y(part));
    context.stroke();
    context.fillStyle = styleColour("--faint");
    context.fillText(formatCode(state.quantity, state.unit, part * LEVELS), MARGIN.left - 6, y(part) + 4);
  }
  context.textAlign = "center";
  const room = plotWidth / n;
  const fits = (t) => context.measureText(shown(tokens[t]).text).width <= room + 2;
  const fitting = room > letterWidth * 0.75 ? Array.from({ length: n }, (_, k) => start + k).filter(fits) : [];
  if (fitting.length > 0.8 * n) { // the tokens below the axis
    for (const t of fitting) context.fillText(shown(tokens[t]).text, x(t), 126);
  } else {
    context.fillText(`token ${start}`, MARGIN.left + 26, 126);
    context.fillText(`${start + n - 1}`, width - MARGIN.right - 24, 126);
  }

  const lines = chartLines();
  for (const { part, line, chosen } of [...lines].sort((a, b) => a.chosen - b.chosen)) {
    context.strokeStyle = styleColour(`--line-${line}`);
    context.lineWidth = chosen ? 2 : 1.2;
    context.globalAlpha = chosen ? 1 : 0.75;
    context.setLineDash(chosen || n > 1000 ? [] : DASHES[line]);
    context.beginPath();
    const perPixel = n / plotWidth;
    if (perPixel <= 2) {
      let isDown = false;
      for (let t = start; t < start + n; t++) {
        const value = part(t);
        if (Number.isNaN(value)) isDown = false;
        else if (isDown) context.lineTo(x(t), y(value));
        else context.moveTo(x(t), y(value)), (isDown = true);
      }
    } else {
      for (let pixel = 0; pixel < plotWidth; pixel++) { // from the least to the greatest value
        let [low, high] = [Infinity, -Infinity];
        for (let t = start + Math.floor(pixel * perPixel); t < start + Math.min((pixel + 1) * perPixel, n); t++) {
          const value = part(t);
          if (value < low) low = value;
          if (value > high) high = value;
        }
        if (low <= high) {
          context.moveTo(MARGIN.left + pixel, y(low) + 0.5);
          context.lineTo(MARGIN.left + pixel, y(high) - 0.5);
        }
      }
    }
    context.stroke();
  }
  context.globalAlpha = 1;
  context.setLineDash([]);
  context.strokeStyle = styleColour("--ink");
  context.lineWidth = 1.2;
  for (const t of new Set([state.cursor, shownToken()])) {
    if (t < start || t >= start + n) continue;
    context.beginPath();
    context.moveTo(x(t), MARGIN.top);
    context.lineTo(x(t), MARGIN.top + plotHeight);
    context.stroke();
  }
  element("chart-name").textContent = `Unit ${state.unit} over time`;
  element("chart-lines").replaceChildren(
    ...lines.map(({ name, line, chosen }) => {
      const label = document.createElement("b");
      const sample = document.createElement("i");
      sample.style.borderTopColor = `var(--line-${line})`;
      sample.style.borderTopStyle = chosen ? "solid" : ["dashed", "dashed", "dotted", "dashed"][line];
      label.append(sample, name);
      return label;
    }),
  );
  canvas.setAttribute("aria-valuemax", T - 1);
  canvas.setAttribute("aria-valuenow", state.cursor);
  canvas.setAttribute("aria-valuetext", `token ${state.cursor}, ${unitText(state.unit, state.cursor)}`);
}

/** The lines of the chart: part(t) is between 0 and 1, or NaN. */
function chartLines() {
  const known = [];
  quantities.forEach(({ name }, q) => {
    if (!values[q]) return;
    const part = (t) => {
      const code = codeAt(q, state.unit, t);
      return code === NOT_FINITE ? NaN : code / LEVELS;
    };
    known.push({ name, line: q, chosen: q === state.quantity, part });
  });
  const name = element("feature").value;
  const column = element("sort").value === "correlation" && featureCache.get(name);
  if (column) {
    const [start, n] = chartWindow();
    let [low, high] = [Infinity, -Infinity];
    for (let t = start; t < start + n; t++) {
      low = Math.min(low, column[t]);
      high = Math.max(high, column[t]);
    }
    known.push({ name, line: 3, chosen: false, part: (t) => (column[t] - low) / (high - low || 1) });
  }
  return known;
}

function drawStatus() {
  const t = shownToken();
  const words = NAMES[tokens[t]] ?? `“${shown(tokens[t]).text}”`;
  const column = element("sort").value === "correlation" && featureCache.get(element("feature").value);
  const more = column ? ` · ${element("feature").value}: ${Number(column[t].toPrecision(4))}` : "";
  element("status").textContent = `Token ${t}: ${words} · ${unitText(state.unit, t)}${more}`;
}

// --- the selection --------------------------------------------------------------------------------------------------

let finding = 0;

const isAbove = () => element("direction").value === "above";

function defaultThreshold() {
  const offset = isDiverging(state.quantity) ? 38 : 0; // 30% of the range, or its middle
  return LEVELS / 2 + (isAbove() ? offset : -offset);
}

/** Whether codes are active, by code. NaN and infinity are not. */
function activity() {
  const threshold = Number(element("threshold").value);
  const active = new Uint8Array(256);
  for (let code = 0; code <= LEVELS; code++) active[code] = isAbove() ? code >= threshold : code <= threshold;
  return active;
}

function select(start, end) {
  state.selection = start < end ? [start, end] : null;
  findUnits();
  if (element("sort").value === "selection") sortUnits();
  redraw("text", "chart");
}

/** Units active over the whole selection, and, if wanted, not just outside it. */
async function findUnits() {
  const run = ++finding;
  const isCurrent = () => run === finding;
  const { selection, quantity } = state;
  element("selection").setAttribute("aria-busy", "true");
  const threshold = Number(element("threshold").value);
  const { shared } = quantities[quantity];
  const words = shared
    ? formatNumber(valueOf(quantity, 0, threshold), rangeSize(quantity, 0))
    : `${Math.round(100 * partOfRange(quantity, threshold))}% of its range`.replace("-", "−");
  element("threshold-value").textContent = words;
  element("threshold").setAttribute("aria-valuetext", words);
  element("selection-hint").hidden = selection !== null;
  element("selection-body").hidden = selection === null;
  state.found = [];
  if (selection === null) {
    element("selection-note").textContent = "";
    setMatches([]);
    return;
  }
  const [start, end] = selection;
  element("selection-note").textContent = `${count(end - start, "token")}: ${plainText(start, Math.min(end, start + 40))}`;
  const active = activity();
  const codes = values[quantity];
  const excluded = element("outside").checked;
  const found = [];
  const isDone = await inParts(unitCount, (unit) => {
    const offset = unit * T;
    if (excluded && start > 0 && active[codes[offset + start - 1]]) return;
    if (excluded && end < T && active[codes[offset + end]]) return;
    for (let t = start; t < end; t++) if (!active[codes[offset + t]]) return;
    found.push(unit);
  }, isCurrent);
  if (!isDone) return;
  state.found = found;
  element("found-name").textContent = `${count(found.length, "unit")} active over the whole selection`;
  element("found").replaceChildren(...found.map(foundUnit));
  if (!found.length) element("found").append(note("None. Change the threshold or the selection."));
  markFound();
  element("together").max = Math.max(found.length, 1);
  element("together").value = found.length;
  await findMatches(isCurrent);
}

/** Other places where at least so many of the found units are active together: runs of tokens. */
async function findMatches(isCurrent) {
  const { found, quantity, selection } = state;
  const wanted = Number(element("together").value);
  element("together-label").hidden = found.length < 2;
  element("together-value").textContent = `${wanted} of ${found.length}`;
  element("together").setAttribute("aria-valuetext", `${wanted} of ${found.length}`);
  if (!found.length) return setMatches([]);
  element("selection").setAttribute("aria-busy", "true");
  const active = activity();
  const codes = values[quantity];
  const together = new Uint16Array(T);
  const isDone = await inParts(found.length, (k) => {
    const offset = found[k] * T;
    for (let t = 0; t < T; t++) together[t] += active[codes[offset + t]];
  }, isCurrent);
  if (!isDone) return;
  const runs = [];
  for (let t = 0; t < T; t++) {
    if (together[t] < wanted) continue;
    const start = t;
    while (t + 1 < T && together[t + 1] >= wanted) t++;
    if (t < selection[0] || start >= selection[1]) runs.push([start, t + 1]);
  }
  // Spans as long as the selection come first.
  const difference = ([start, end]) => Math.abs(end - start - (selection[1] - selection[0]));
  runs.sort((a, b) => difference(a) - difference(b) || a[0] - b[0]);
  setMatches(runs);
}

const MOST_SHOWN = 200;

function setMatches(runs) {
  state.matches = runs;
  inMatch.fill(0);
  for (const [start, end] of runs) inMatch.fill(1, start, end);
  const more = runs.length > MOST_SHOWN ? `, the ${MOST_SHOWN} closest in length` : "";
  element("matches-name").textContent = `${count(runs.length, "other place")}${more}`;
  element("matches").replaceChildren(...runs.slice(0, MOST_SHOWN).map(matchItem));
  if (!runs.length && state.found.length) {
    element("matches").append(note("None. Change the threshold or the number of units."));
  }
  element("selection").setAttribute("aria-busy", "false");
  redraw("text");
}

function foundUnit(unit) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = unit;
  button.ariaLabel = `Unit ${unit}`;
  button.addEventListener("click", () => chooseUnit(unit));
  item.append(button);
  return item;
}

function markFound() {
  element("found").querySelectorAll("button").forEach((button, k) => {
    button.setAttribute("aria-pressed", state.found[k] === state.unit);
  });
}

/** A match with the text around it. */
function matchItem([start, end]) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  const position = document.createElement("small");
  position.textContent = start;
  const context = document.createElement("span");
  const mark = document.createElement("mark");
  mark.textContent = plainText(start, Math.min(end, start + 60));
  const before = GAP ? 2 : 8;
  context.append(plainText(Math.max(0, start - before), start), mark, plainText(end, Math.min(T, end + 30)));
  button.append(position, context);
  button.addEventListener("click", () => moveCursor(start, { center: true }));
  item.append(button);
  return item;
}

const plainText = (start, end) =>
  tokens.slice(start, end).map((token) => (token === " " ? " " : shown(token).text + (GAP ? " " : ""))).join("");

function note(words) {
  const item = document.createElement("li");
  item.textContent = words;
  return item;
}

// --- moving ---------------------------------------------------------------------------------------------------------

function moveCursor(t, { extend = false, center = false } = {}) {
  if (extend) state.anchor ??= state.cursor;
  else state.anchor = null;
  state.cursor = clamp(t, 0, T - 1);
  state.hovered = null;
  const top = rowOf(state.cursor) * ROW;
  if (center) text.scrollTop = top - text.clientHeight / 2;
  else text.scrollTop = clamp(text.scrollTop, top + ROW - text.clientHeight + 4, top);
  if (extend) select(Math.min(state.anchor, state.cursor), Math.max(state.anchor, state.cursor) + 1);
  redraw("text", "grid", "chart", "status");
}

function moveRows(step) {
  const row = clamp(rowOf(state.cursor) + step, 0, layout.rowStart.length - 2);
  return tokenInRow(row, layout.column[state.cursor]);
}

/** Where a key of the text moves the cursor, or undefined. */
function target(event) {
  const { rowStart } = layout;
  const row = rowOf(state.cursor);
  const page = Math.max(1, Math.floor(text.clientHeight / ROW) - 1);
  const whole = event.ctrlKey || event.metaKey;
  return {
    ArrowLeft: state.cursor - 1,
    ArrowRight: state.cursor + 1,
    ArrowUp: moveRows(-1),
    ArrowDown: moveRows(1),
    PageUp: moveRows(-page),
    PageDown: moveRows(page),
    Home: whole ? 0 : rowStart[row],
    End: whole ? T - 1 : rowStart[row + 1] - 1,
  }[event.key];
}

text.addEventListener("keydown", (event) => {
  const t = target(event);
  if (t === undefined) return;
  event.preventDefault();
  moveCursor(t, { extend: event.shiftKey });
});

element("chart").addEventListener("keydown", (event) => {
  if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
  event.preventDefault();
  moveCursor(target(event));
});

element("units").addEventListener("keydown", (event) => {
  const step = { ArrowUp: -1, ArrowDown: 1, PageUp: -8, PageDown: 8, Home: -unitCount, End: unitCount }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  moveUnit(step);
});

element("grid").addEventListener("keydown", (event) => {
  const { columns } = gridShape(element("grid").clientWidth);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -unitCount, End: unitCount };
  if (!(event.key in step)) return;
  event.preventDefault();
  chooseUnit(state.unit + step[event.key]);
});

document.addEventListener("keydown", (event) => {
  if (event.target.type === "search" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "[") moveUnit(-1);
  else if (event.key === "]") moveUnit(1);
  else if (event.key === "Escape") {
    state.anchor = null;
    select(0, 0);
  } else if (event.key >= "1" && event.key <= String(quantities.length)) chooseQuantity(Number(event.key) - 1);
  else return;
  event.preventDefault();
});

// --- the pointer ----------------------------------------------------------------------------------------------------

let dragFrom = null;

text.addEventListener("pointerdown", (event) => {
  const isScrollBar = event.clientX - text.getBoundingClientRect().left > text.clientWidth;
  if (event.button !== 0 || isScrollBar) return;
  const t = tokenAtPoint(event.clientX, event.clientY);
  moveCursor(t, { extend: event.shiftKey });
  if (event.pointerType === "touch") return; // a touch scrolls
  dragFrom = event.shiftKey ? state.anchor : t;
  text.setPointerCapture(event.pointerId);
});

text.addEventListener("pointermove", (event) => {
  const t = tokenAtPoint(event.clientX, event.clientY);
  if (dragFrom === null) {
    const cell = event.target.closest("[role=gridcell]");
    hover(cell ? cell.token : null);
  } else if (t !== state.cursor) {
    state.anchor = dragFrom;
    moveCursor(t, { extend: true });
  }
  if (dragFrom !== null) scrollWhileDragging(event);
});

for (const name of ["pointerup", "pointercancel"]) text.addEventListener(name, () => (dragFrom = null));
text.addEventListener("pointerleave", () => hover(null));
text.addEventListener("scroll", () => redraw("text"));

/** Scrolls where the pointer is dragged beyond the panel. */
function scrollWhileDragging({ clientY }) {
  const box = text.getBoundingClientRect();
  if (clientY < box.top) text.scrollTop -= ROW;
  if (clientY > box.bottom) text.scrollTop += ROW;
}

function hover(t) {
  if (state.hovered === t) return;
  state.hovered = t;
  redraw("grid", "status");
}

element("grid").addEventListener("pointermove", (event) => {
  state.hoveredUnit = unitAtPoint(event);
  redraw("grid");
});
element("grid").addEventListener("pointerleave", () => {
  state.hoveredUnit = null;
  redraw("grid");
});
element("grid").addEventListener("click", (event) => {
  const unit = unitAtPoint(event);
  if (unit !== null) chooseUnit(unit);
});

function tokenInChart(event) {
  const [start, n] = chartWindow();
  const width = element("chart").clientWidth - MARGIN.left - MARGIN.right;
  return clamp(start + Math.floor(((event.offsetX - MARGIN.left) / width) * n), start, start + n - 1);
}

element("chart").addEventListener("pointermove", (event) => {
  hover(tokenInChart(event));
  redraw("chart");
});
element("chart").addEventListener("pointerleave", () => {
  hover(null);
  redraw("chart");
});
element("chart").addEventListener("click", (event) => moveCursor(tokenInChart(event), { center: true }));

// --- controls -------------------------------------------------------------------------------------------------------

element("theme").addEventListener("click", () => {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
});
element("window").addEventListener("change", () => redraw("chart"));
element("sort").addEventListener("change", () => sortUnits().then(() => redraw("status")));
element("feature").addEventListener("change", () => sortUnits().then(() => redraw("status")));
element("threshold").addEventListener("input", findUnits);
element("outside").addEventListener("change", findUnits);
element("direction").addEventListener("change", () => {
  element("threshold").value = defaultThreshold();
  findUnits();
});
element("together").addEventListener("input", () => {
  const run = ++finding;
  findMatches(() => run === finding);
});

/** Finds the next place of the words in the field, after the cursor and then from the beginning. */
element("find").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !element("find").value) return;
  const whole = tokens.join(GAP ? " " : "").toLowerCase();
  const words = element("find").value.toLowerCase();
  const starts = new Uint32Array(T + 1);
  for (let t = 0; t < T; t++) starts[t + 1] = starts[t] + tokens[t].length + GAP;
  const forward = whole.indexOf(words, starts[state.cursor] + 1);
  const index = forward >= 0 ? forward : whole.indexOf(words);
  element("find").setAttribute("aria-invalid", index < 0);
  if (index < 0) {
    element("status").textContent = `“${element("find").value}” is not in the text.`;
    return;
  }
  let t = starts.findIndex((position) => position > index) - 1;
  moveCursor(t, { center: true });
});

element("quantities").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const q = (state.quantity + step + quantities.length) % quantities.length;
  chooseQuantity(q);
  element("quantities").children[state.quantity].focus();
});

// --- start ----------------------------------------------------------------------------------------------------------

async function start() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  quantities.forEach(({ name }, q) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => chooseQuantity(q));
    element("quantities").append(button);
  });
  for (const [k, name] of description.features.entries()) {
    const bytes = await decode(takeText(`feature-${k}`));
    featureCache.set(name, new Float32Array(bytes.buffer));
  }
  const names = [...description.features, ...Object.keys(COMPUTED).filter((name) => !featureCache.has(name))];
  element("feature").append(...names.map((name) => new Option(name, name)));
  element("size").textContent = `${count(T, "token")}, ${count(unitCount, "unit")}`;

  await pause();
  values[0] = await decode(takeText("values-0"));
  setTheme(document.documentElement.dataset.theme);
  layOut();
  new ResizeObserver(() => {
    layOut();
    redraw("text", "grid", "chart");
  }).observe(text);
  chooseUnit(0);
  chooseQuantity(0);
  for (let q = 1; q < quantities.length; q++) {
    values[q] = await decode(takeText(`values-${q}`));
    redraw("grid", "chart", "status");
  }
  element("main").setAttribute("aria-busy", "false");
}

start();
