// A panel: title, readout, chart, the same as a table. It holds no data of its own.
import { figure, number } from "../core/format.js";
import { make, setText } from "../core/dom.js";
import { Chart } from "./chart.js";
import { idOf } from "./panels.js";
import { readings, tableOf } from "./series.js";
import { smoothedFigure } from "./smoothing.js";

/** @typedef {import("./series.js").Line} Line */
/** @typedef {import("./chart.js").Drawing} Drawing */
/** @typedef {{id: number, name: string}} Shown */

const TABLE_ROWS = 200;
/** So many readings tell their intervals; of more, the bands do. */
const MOST_INTERVALS = 4;
const CHANGED = new Intl.ListFormat("en");

export class PanelView {
  element;
  /** Drawn since the last change. */ fresh = false;
  /** What is read while nobody points at the chart; null: the last values. @type {number | null} */ rest = null;
  /** @type {Chart | null} */ #chart = null;
  /** @type {Drawing | null} */ #drawing = null;
  /** @type {Map<number, Shown>} */ #runs = new Map();
  /** @type {number | null} */ #cursor = null;
  #panel;
  #hooks;
  #box = make("div", { class: "chart-box", tabindex: 0, role: "img" });
  #empty = make("p", { class: "chart-empty secondary" });
  #readout = make("p", { class: "readout figures", "aria-hidden": "true" });
  #table = make("div", { class: "chart-table scroll-x", hidden: true, tabindex: 0, role: "region" });
  #tableButton = make("button", { type: "button", class: "quiet", "aria-pressed": "false" }, "Table");

  /** @param {import("./panels.js").Panel} panel @param {{onWindow: (window: [number, number] | null) => void, onAnnounce: (text: string) => void}} hooks */
  constructor(panel, hooks) {
    this.#panel = panel;
    this.#hooks = hooks;
    const about = make("dl", { class: "about" });
    for (const name of panel.metrics) {
      about.append(make("dt", {}, make("code", {}, name)), make("dd", {}, panel.formulas[name] ?? "Logged by the run; the catalogue does not know it."));
    }
    const info = make("details", { class: "panel-info", name: "panel-info" }, make("summary", { "aria-label": `How ${panel.title} is computed` }, "i"), about);
    const wide = make("button", { type: "button", class: "quiet", "aria-pressed": "false", "aria-label": `Enlarge ${panel.title}` }, "⤢");
    wide.addEventListener("click", () => {
      const large = this.element.classList.toggle("panel-large");
      wide.setAttribute("aria-pressed", String(large));
    });
    this.#tableButton.addEventListener("click", () => this.#showTable(this.#table.hidden));
    this.#box.setAttribute("aria-label", panel.title); // until it is drawn
    this.#table.setAttribute("aria-label", `${panel.title} as a table`);
    const title = make("h3", { class: "panel-title" }, panel.title);
    if (panel.unit) title.append(" ", make("span", { class: "unit" }, panel.unit));
    this.element = make("article", { class: "panel", "data-panel": idOf(panel) },
      make("header", { class: "panel-head" }, title, info, make("span", { class: "panel-space" }), this.#tableButton, wide), this.#readout, this.#box, this.#empty, this.#table);
    this.#box.addEventListener("keydown", (event) => this.#key(event));
    this.#box.addEventListener("blur", () => this.#moveCursor(null));
  }

  /** @param {Drawing} drawing @param {Map<number, Shown>} runs @param {boolean} afresh */
  draw(drawing, runs, afresh) {
    this.#drawing = drawing;
    this.#runs = runs;
    this.fresh = true;
    const any = drawing.lines.length > 0;
    this.#box.hidden = !any;
    this.#empty.hidden = any;
    if (any) {
      this.#chart ??= new Chart(this.#box, { onCursor: (x) => this.#moveCursor(x), onWindow: this.#hooks.onWindow });
      this.#chart.draw(drawing, afresh);
    } else {
      setText(this.#empty, runs.size ? `${runs.size > 1 ? "These runs have" : "This run has"} not logged ${CHANGED.format(this.#panel.metrics)} yet.` : "Every run is hidden.");
    }
    this.#box.setAttribute("aria-label", this.#summary());
    this.#read();
    if (!this.#table.hidden) this.#fillTable();
  }

  resize() {
    this.#chart?.resize();
  }

  /** It is taken off the page. */
  leave() {
    this.#chart?.destroy();
    this.#chart = null;
  }

  /** @param {Line} line */
  #label(line) {
    const parts = [];
    if (this.#runs.size > 1) parts.push(this.#runs.get(line.run)?.name ?? String(line.run));
    if (line.past) parts.push("overwritten");
    if (this.#panel.metrics.length > 1) parts.push(line.name.split("_").at(-1) ?? line.name);
    return parts.join(" ");
  }

  #summary() {
    const lines = this.#drawing?.lines ?? [];
    if (!lines.length) return `${this.#panel.title}: no values yet`;
    const last = lines.map((line) => `${this.#label(line) || "last"} ${figure(line.raw.at(-1))} at step ${line.step.at(-1) ?? "—"}`);
    return `${this.#panel.title}. ${last.join("; ")}. Arrow keys read values.`;
  }

  /** @param {number | null} x */
  #moveCursor(x) {
    this.#cursor = x;
    this.#read();
  }

  /** Values under the crosshair, else at `rest`, else the last ones. */
  #read() {
    const drawing = this.#drawing;
    if (!drawing) return;
    const at = this.#cursor ?? this.rest;
    const { newest, found } = readings(drawing.lines, at);
    const parts = found.map(({ line, place, index, step }) => {
      const look = drawing.looks[place];
      const key = make("span", { class: `key c${look?.slot ?? 9}${look?.dash.length ? " key-dashed" : ""}` });
      const part = make("span", { class: "reading" }, key);
      const aside = (/** @type {string} */ text) => part.append(make("span", { class: "secondary" }, text));
      const label = this.#label(line);
      if (label) aside(`${label} `);
      part.append(make("strong", {}, smoothedFigure(line.smoothed[index], line.raw)));
      if (line.smoothed !== line.raw) aside(` raw ${figure(line.raw[index])}`);
      if (line.isInterval && index >= 0 && found.length <= MOST_INTERVALS) aside(` ${number(line.low?.[index] ?? null, 2)}–${number(line.high?.[index] ?? null, 2)}`);
      if (step !== null) aside(` at step ${number(step, 0)}`);
      return part;
    });
    if (newest !== null) parts.unshift(make("span", { class: "secondary" }, `step ${number(newest, 0)}`));
    // Room for every reading, so that a longer number does not push the chart down under the pointer.
    this.#readout.style.minHeight = `${20 * Math.ceil((drawing.lines.length + (this.#runs.size > 1 ? 1 : 0)) / 2)}px`;
    this.#readout.replaceChildren(...parts);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (this.#chart?.step(by)) this.#hooks.onAnnounce(this.#readout.textContent ?? "");
  }

  /** @param {boolean} show */
  #showTable(show) {
    this.#table.hidden = !show;
    this.#tableButton.setAttribute("aria-pressed", String(show));
    if (show) this.#fillTable();
  }

  #fillTable() {
    const lines = this.#drawing?.lines ?? [];
    const { rows, left } = tableOf(lines, TABLE_ROWS);
    const head = make("tr", {}, make("th", { scope: "col", class: "num" }, "Step"));
    for (const line of lines) head.append(make("th", { scope: "col", class: "num" }, this.#label(line) || this.#panel.title));
    const body = make("tbody");
    for (const row of rows) {
      const cells = make("tr", {}, make("th", { scope: "row", class: "num" }, number(row.step, 0)));
      for (const value of row.values) cells.append(make("td", { class: "num" }, figure(value)));
      body.append(cells);
    }
    const notes = [];
    if (left) notes.push(`${number(left, 0)} older rows are left out.`);
    const broken = lines.reduce((sum, line) => sum + line.ticks.length, 0);
    if (broken) notes.push(`${number(broken, 0)} values are not finite (red ticks on the axis).`);
    this.#table.replaceChildren(make("table", { class: "table plain" }, make("thead", {}, head), body), make("p", { class: "secondary" }, notes.join(" ")));
  }
}
