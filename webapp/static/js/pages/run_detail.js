// The curves of a run, with other runs over them if the URL names some.
import { PanelView } from "../charts/panel.js";
import { chosenPanels, idOf, panelsOf } from "../charts/panels.js";
import { lineOf, startAfter, xOf } from "../charts/series.js";
import { stylesOf } from "../charts/styles.js";
import { ApiError, json } from "../core/api.js";
import { byId, data, make, setText, typed } from "../core/dom.js";
import { hasEnded, statusGlyph, statusWord } from "../core/format.js";
import { load } from "../core/regions.js";
import { onTheme } from "../core/theme.js";
import { read, write } from "../core/url_state.js";
import { announce } from "../core/announce.js";
import { fromWire } from "../live/feed.js";
import { RunHead } from "../live/head.js";
import { Session } from "../live/session.js";

const DEFAULT_SMOOTHING = 0.6;
const LAZY_MARGIN = "400px";

const root = byId("curves");
const main = /** @type {RunState} */ (data("run-state"));
/** @type {(RunState & {colour: number, url: string})[]} */
const overlays = data("overlay-runs");
const runs = [{ id: main.id, name: main.name, colour: Number(root.dataset.colour), url: "", state: main }, ...overlays.map((run) => ({ id: run.id, name: run.name, colour: run.colour, url: run.url, state: run }))];
/** Whose curves this fork's go on from, the nearest first. @type {{id: number, name: string, colour: number, url: string, to_step: number}[]} */
const ancestors = data("ancestors");
const styles = stylesOf([...runs, ...ancestors.filter((run) => !runs.some((other) => other.id === run.id))]);
const catalogue = /** @type {import("../charts/panels.js").Panel[]} */ (data("catalogue"));

/** @type {import("../charts/series.js").XAxis} */
let axis = read("x") === "tokens" ? "tokens" : read("x") === "time" ? "time" : "step";
let smoothing = clampSmoothing(read("sm"));
const hidden = new Set((read("hide") ?? "").split(",").filter(Boolean).map(Number));
/** @type {[number, number] | null} */
let window_ = readWindow();

/** @type {Map<string, Series>} */
let overwritten = new Map();
/** @type {number[]} */
const resumes = data("resumes");

/** Up to the step where the next one forked; that never changes, so it is read once. @type {Map<number, Map<string, Series>>} */
const before = new Map();

let packingSeq = 0;
const head = new RunHead();
const session = new Session(
  {
    onProblem: (message) => {
      const banner = byId("curves-problem");
      banner.hidden = message === null;
      if (message) setText(banner, message);
    },
    onChange: (changed) => {
      const feed = session.feeds.get(main.id);
      if (changed.has(main.id) && feed?.state) {
        head.show(feed.state);
        document.title = document.title.replace(/· step \d+ ·/, `· step ${feed.state.step} ·`);
        waiting(feed.state);
        if (feed.packingSeq > packingSeq) void showPacking(feed.packingSeq);
      }
      for (const run of changed) showLegendState(run);
      renew();
    },
  },
  { curves: true },
);

// ---- panels

/** @type {Map<string, PanelView>} */
const views = new Map();
/** @type {Map<string, import("../charts/panels.js").Panel>} */
const panels = new Map();
/** @type {Map<string, {details: HTMLDetailsElement, grid: HTMLElement, count: HTMLElement}>} */
const sections = new Map();
const visible = new Set();
const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const id = /** @type {HTMLElement} */ (entry.target).dataset.panel ?? "";
      if (entry.isIntersecting) visible.add(id);
      else visible.delete(id);
    }
    drawSoon();
  },
  { rootMargin: LAZY_MARGIN },
);
const sizes = new ResizeObserver((entries) => {
  for (const entry of entries) views.get(/** @type {HTMLElement} */ (entry.target).dataset.panel ?? "")?.resize();
});

/** Names of all metrics that these runs have logged so far. */
const logged = () => new Set([...session.feeds.values()].flatMap((feed) => [...feed.series.keys()]));

function layOut() {
  for (const panel of panelsOf(catalogue, root.dataset.part === undefined ? logged() : [])) {
    const id = idOf(panel);
    if (panels.has(id)) continue;
    panels.set(id, panel);
    const view = new PanelView(panel, { onWindow: setWindow, onAnnounce: announce });
    views.set(id, view);
    section(panel.section).grid.append(view.element);
    near.observe(view.element);
    sizes.observe(view.element);
  }
  filter();
}

/** @param {string} title */
function section(title) {
  let found = sections.get(title);
  if (!found) {
    const count = make("span", { class: "secondary figures" });
    const grid = make("div", { class: "panel-grid" });
    const details = make("details", { class: "panel-section", open: sections.size === 0 || opened().has(title) }, make("summary", {}, make("h2", {}, title), " ", count), grid);
    details.addEventListener("toggle", () => rememberOpen());
    byId("panels").append(details);
    found = { details, grid, count };
    sections.set(title, found);
  }
  return found;
}

/** Sections the reader opened stay open, on this machine. */
function opened() {
  return new Set(JSON.parse(localStorage.getItem("open-sections") ?? "[]"));
}
function rememberOpen() {
  localStorage.setItem("open-sections", JSON.stringify([...sections].filter(([, one]) => one.details.open && !openForFilter.has(one.details)).map(([title]) => title)));
}

/** What a filter opened, it closes again. @type {Set<HTMLDetailsElement>} */
const openForFilter = new Set();
const pattern = () => typed("panel-filter", HTMLInputElement).value.trim();
typed("panel-filter", HTMLInputElement).value = read("panels") ?? "";

function filter() {
  const wanted = pattern();
  const chosen = new Set(chosenPanels([...panels.values()], wanted, logged()).map(idOf));
  const isNothingFound = wanted !== "" && !chosen.size; // before the first step there is nothing to find
  byId("panels-none").hidden = !isNothingFound;
  setText(byId("panels-none"), !isNothingFound ? "" : `No panel matches “${wanted}”. The filter looks in titles and names of metrics.`);
  for (const { details, grid, count } of sections.values()) {
    let shown = 0;
    for (const element of grid.children) {
      const match = chosen.has(/** @type {HTMLElement} */ (element).dataset.panel ?? "");
      /** @type {HTMLElement} */ (element).hidden = !match;
      if (match) shown += 1;
    }
    setText(count, String(shown));
    details.hidden = shown === 0;
    if (wanted && shown && !details.open) {
      details.open = true;
      openForFilter.add(details);
    } else if (!wanted && openForFilter.delete(details)) details.open = false;
  }
}

// ---- drawing: what is visible, one panel per frame

let drawing = false;
let afresh = new Set();
function renew() {
  layOut();
  for (const view of views.values()) view.fresh = false;
  drawSoon();
}
function drawSoon() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(drawNext);
}
function drawNext() {
  drawing = false;
  for (const id of visible) {
    const view = views.get(id);
    if (!view || view.fresh || !view.element.clientWidth) continue;
    drawPanel(id, view);
    drawSoon();
    return;
  }
}

/** One x range for all panels, so that the same place is the same step everywhere. @param {{id: number}[]} shown @returns {[number, number] | null} */
function everything(shown) {
  let [low, high] = [Infinity, -Infinity];
  for (const run of shown) {
    const curves = session.feeds.get(run.id)?.series;
    if (!curves) continue;
    const place = xOf(axis, curves, startOf(run.id));
    for (const curve of curves.values()) {
      const ends = [curve.step[0], curve.step.at(-1), curve.nonfinite[0]?.step, curve.nonfinite.at(-1)?.step];
      for (const step of ends) {
        const x = step === undefined ? NaN : place(step);
        if (x < low) low = x;
        if (x > high) high = x;
      }
    }
  }
  if (drawnAncestors().length) low = Math.min(low, 0);
  return high > low ? [low, high] : null;
}

/** Where the curves of a run on this page begin. @param {number} id */
const startOf = (id) => (id === main.id ? startAfter(axis, generations(0)) : undefined);

/** The ancestors that are read, from the oldest to the one before `place`. @param {number} place 0: this run */
const generations = (place) =>
  ancestors.slice(place).toReversed().flatMap((run) => {
    const curves = before.get(run.id);
    return curves ? [{ curves, to: run.to_step }] : [];
  });

/** Those that are not on the page whole already. */
const drawnAncestors = () => ancestors.filter((run) => before.has(run.id) && !hidden.has(run.id) && !runs.some((other) => other.id === run.id));

/** @param {string} id @param {PanelView} view */
function drawPanel(id, view) {
  const panel = /** @type {import("../charts/panels.js").Panel} */ (panels.get(id));
  const shown = runs.filter((run) => !hidden.has(run.id));
  const lines = [];
  const looks = [];
  for (const run of shown) {
    const curves = session.feeds.get(run.id)?.series;
    const style = styles.get(run.id);
    if (!curves || !style) continue;
    for (const [place, name] of panel.metrics.entries()) {
      const band = panel.bands[name];
      const line = lineOf(run.id, curves, name, axis, smoothing, band, startOf(run.id));
      if (!line) continue;
      lines.push(line);
      // The second metric of a panel is dashed, whatever the run's own dash is.
      looks.push({ slot: style.slot, dash: place > 0 ? [4, 3] : style.dash, sparse: band !== undefined && line.raw.length < 40 });
    }
  }
  for (const run of drawnAncestors()) {
    const style = styles.get(run.id);
    const curves = before.get(run.id);
    if (!style || !curves) continue;
    for (const [place, name] of panel.metrics.entries()) {
      const line = lineOf(run.id, curves, name, axis, smoothing, panel.bands[name], startAfter(axis, generations(ancestors.indexOf(run) + 1)));
      if (!line) continue;
      lines.push({ ...line, low: null, high: null, earlier: true });
      looks.push({ slot: style.slot, dash: place > 0 ? [4, 3] : style.dash, sparse: panel.bands[name] !== undefined && line.raw.length < 40, thin: true });
    }
  }
  const style = styles.get(main.id);
  for (const name of overwritten.size && style && !hidden.has(main.id) ? panel.metrics : []) {
    const line = lineOf(main.id, overwritten, name, axis, smoothing, undefined, startOf(main.id));
    if (!line) continue;
    lines.push({ ...line, past: true });
    looks.push({ slot: 9, dash: [2, 3], sparse: line.raw.length < 4 });
  }
  const window = window_ ?? everything(shown);
  const feed = session.feeds.get(main.id);
  const place = feed && xOf(axis, feed.series, startOf(main.id));
  const marks = feed && place && !hidden.has(main.id) ? marksOf(feed).map((mark) => ({ x: place(mark.step), kind: mark.kind })) : [];
  if (ancestors[0] && !hidden.has(main.id)) marks.push({ x: startOf(main.id)?.x ?? 0, kind: "forked" });
  view.draw({ lines, looks, window, marks }, new Map([...shown, ...drawnAncestors()].map((run) => [run.id, run])), afresh.delete(id));
}

/** Where later attempts went on from, those before this page was loaded included; and what people did. @param {Feed} feed */
function marksOf(feed) {
  const live = feed.marks.filter((mark) => mark.step > 0 && mark.kind === "status");
  const resumed = new Set([...resumes, ...feed.marks.filter((mark) => mark.kind === "started").map((mark) => mark.step)]);
  return [...live, ...[...resumed].map((step) => ({ step, kind: "resumed" }))];
}

onTheme(() => {
  afresh = new Set(views.keys());
  renew();
});

// ---- legend: eye, colour, name, state

/** @param {HTMLElement} eye @param {number} id of the run that it shows and hides */
function watchEye(eye, id) {
  eye.addEventListener("click", () => {
    if (!hidden.delete(id)) hidden.add(id);
    eye.setAttribute("aria-pressed", String(!hidden.has(id)));
    write({ hide: hidden.size ? [...hidden].join(",") : null });
    renew();
  });
}

/** @type {Map<number, HTMLElement>} */
const legend = new Map();
for (const run of runs) {
  const style = /** @type {{slot: number, dash: number[]}} */ (styles.get(run.id));
  const eye = make("button", { type: "button", class: "quiet eye", "aria-pressed": String(!hidden.has(run.id)), "aria-label": `Show ${run.name}` }, make("span", { class: "eye-glyph" }));
  const state = make("span", { class: "secondary figures", "data-part": "state" });
  const name = run.url ? make("a", { href: run.url }, run.name) : make("strong", {}, run.name);
  const item = make("li", { class: "legend-run" }, eye, make("span", { class: `key c${style.slot}${style.dash.length ? " key-dashed" : ""}` }), name, state);
  if (run.url) {
    const rest = overlays.filter((other) => other.id !== run.id).map((other) => other.id);
    item.append(make("a", { class: "quiet", href: rest.length ? `?with=${rest.join(",")}` : location.pathname, "aria-label": `Take ${run.name} out` }, "✕"));
  }
  watchEye(eye, run.id);
  legend.set(run.id, item);
  byId("run-legend").append(item);
}
for (const run of ancestors) {
  if (runs.some((other) => other.id === run.id)) continue;
  const style = /** @type {{slot: number, dash: number[]}} */ (styles.get(run.id));
  const label = `Show ${run.name} up to step ${run.to_step}`;
  const eye = make("button", { type: "button", class: "quiet eye", "aria-pressed": String(!hidden.has(run.id)), "aria-label": label }, make("span", { class: "eye-glyph" }));
  const key = make("span", { class: `key key-thin c${style.slot}${style.dash.length ? " key-dashed" : ""}` });
  watchEye(eye, run.id);
  byId("run-legend").append(make("li", { class: "legend-run" }, eye, key, make("a", { href: run.url }, run.name), make("span", { class: "secondary figures" }, `up to step ${run.to_step} `, make("span", { class: "fork-mark" }, "◆"), " forked there")));
}
if (runs.length === 1 && !ancestors.length) byId("run-legend").hidden = true;

/** What they logged before the fork. */
async function readAncestors() {
  for (const run of ancestors) {
    try {
      const answer = await json(`/runs/${run.id}/metrics?max_points=1000&to_step=${run.to_step}`);
      before.set(run.id, new Map(answer.series.map((/** @type {WireSeries} */ wire) => [wire.name, fromWire(wire)])));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setText(byId("curves-problem"), `The curve of ${run.name} before the fork could not be read. ${error.message}`);
      byId("curves-problem").hidden = false;
      return;
    }
  }
  byId("panels").hidden = false;
  renew();
}
if (ancestors.length) void readAncestors();

/** What the check of packed training found, in the server's words. @param {number} seq */
async function showPacking(seq) {
  packingSeq = seq;
  try {
    await load(location.pathname, ["run-method"]);
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    // The next reload of the page tells it; the curves go on.
  }
}

/** @param {number} run */
function showLegendState(run) {
  const state = session.feeds.get(run)?.state;
  if (state) setText(legend.get(run)?.querySelector('[data-part="state"]') ?? null, `${statusGlyph(state.shown)} ${statusWord(state.shown)} · ${state.step}/${state.steps_total}`);
}

/** @param {RunState} state */
function waiting(state) {
  const note = document.getElementById("curves-waiting");
  if (!note) return;
  const any = (session.feeds.get(main.id)?.series.size ?? 0) > 0;
  note.hidden = any;
  byId("panels").hidden = !any && runs.length === 1 && !before.size;
  if (any) return;
  const phase = state.phase_words ? ` · ${state.phase_words}` : "";
  if (hasEnded(state.status)) setText(note, "This run ended before its first step, so it has no curves.");
  else if (state.status === "paused") setText(note, "This run was paused before its first step.");
  else setText(note, state.worker ? `Waiting for the first step${phase}.` : "Waiting for a worker to take this run.");
}

// ---- tools

for (const radio of /** @type {NodeListOf<HTMLInputElement>} */ (document.querySelectorAll("#x-axis input"))) {
  radio.checked = radio.value === axis;
  radio.addEventListener("change", () => {
    axis = /** @type {import("../charts/series.js").XAxis} */ (radio.value);
    window_ = null;
    write({ x: axis === "step" ? null : axis, from: null, to: null });
    renew();
  });
}
const slider = typed("smoothing", HTMLInputElement);
const showSmoothing = () => setText(byId("smoothing-value"), smoothing.toFixed(2));
slider.value = String(smoothing);
showSmoothing();
slider.addEventListener("input", () => {
  smoothing = Number(slider.value);
  showSmoothing();
  write({ sm: smoothing === DEFAULT_SMOOTHING ? null : smoothing.toFixed(2) });
  renew();
});
typed("panel-filter", HTMLInputElement).addEventListener("input", () => {
  write({ panels: pattern() || null });
  filter();
  drawSoon();
});
byId("reset-view").addEventListener("click", () => {
  smoothing = DEFAULT_SMOOTHING;
  slider.value = String(smoothing);
  showSmoothing();
  typed("panel-filter", HTMLInputElement).value = "";
  write({ sm: null, panels: null });
  setWindow(null);
});

/** What attempts did that a later one went over again: kept, and hidden until it is asked for. */
async function showOverwritten() {
  const box = typed("show-overwritten", HTMLInputElement);
  write({ over: box.checked ? "1" : null });
  overwritten = new Map();
  if (box.checked) {
    try {
      const answer = await json(`/runs/${main.id}/metrics?superseded=true&max_points=1000`);
      overwritten = new Map(answer.series.map((/** @type {WireSeries} */ wire) => [wire.name, fromWire(wire)]));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      box.checked = false;
      setText(byId("curves-problem"), error.message);
      byId("curves-problem").hidden = false;
    }
  }
  renew();
}
if (document.getElementById("show-overwritten")) {
  const box = typed("show-overwritten", HTMLInputElement);
  box.addEventListener("change", () => void showOverwritten());
  box.checked = read("over") === "1";
  if (box.checked) void showOverwritten();
}

/** @param {[number, number] | null} chosen */
function setWindow(chosen) {
  window_ = chosen;
  write({ from: chosen ? String(Number(chosen[0].toPrecision(6))) : null, to: chosen ? String(Number(chosen[1].toPrecision(6))) : null });
  renew();
}
/** @returns {[number, number] | null} */
function readWindow() {
  const [from, to] = [Number(read("from") ?? NaN), Number(read("to") ?? NaN)];
  return from < to ? [from, to] : null;
}
/** @param {string | null} text */
function clampSmoothing(text) {
  const value = Number(text ?? NaN);
  return value >= 0 && value <= 0.99 ? value : DEFAULT_SMOOTHING;
}

for (const run of runs) void session.follow(run.id, run.state);
