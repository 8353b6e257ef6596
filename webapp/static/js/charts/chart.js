// One chart: uPlot behind the few words that pages need. It paints the lines it is given; what they are is decided in
// `series.js`. Ticks for values that are not finite, event marks and bands are painted here.
import uPlot from "../../vendor/uPlot.js";
import { axisLabels } from "../core/format.js";
import { colour, faded, runColour } from "../core/theme.js";
import { xRange, yRange } from "./scale.js";
import { aligned } from "./series.js";

/** @typedef {import("./series.js").Line} Line */
/**
 * @typedef {object} Look
 * @property {number} slot of the run palette
 * @property {number[]} dash
 * @property {boolean} sparse few points: mark each one
 * @property {boolean} [thin] of a run that this one came from
 */
/**
 * @typedef {object} Drawing
 * @property {Line[]} lines
 * @property {Look[]} looks one per line
 * @property {[number, number] | null} window chosen x range
 * @property {{x: number, kind: string}[]} marks kind "now" is a whole line, "resumed" has a notch, "forked" a diamond, the others are dashed
 */
/**
 * @typedef {object} ChartHooks
 * @property {(x: number | null) => void} onCursor
 * @property {(window: [number, number] | null) => void} onWindow the reader chose a range, or all of it
 */

const COLUMNS = 4; // raw, smoothed, low, high
/** Steps are whole. */
const WHOLE = Array.from({ length: 9 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();
/** A line of so few points needs them marked to be seen. */
const FEW = 3;
const FONT = "11px Inter, system-ui, sans-serif";
const sync = uPlot.sync("curves");

export class Chart {
  /** @type {uPlot | null} */ #plot = null;
  /** @type {Drawing} */ #drawing = { lines: [], looks: [], window: null, marks: [] };
  #shape = "";
  #host;
  #hooks;

  /** @param {HTMLElement} host @param {ChartHooks} hooks */
  constructor(host, hooks) {
    this.#host = host;
    this.#hooks = hooks;
  }

  /** @param {Drawing} drawing @param {boolean} [afresh] the theme changed */
  draw(drawing, afresh = false) {
    this.#drawing = drawing;
    const { x, columns } = aligned(drawing.lines);
    const data = /** @type {uPlot.AlignedData} */ (/** @type {unknown} */ ([x, ...columns]));
    const shape = JSON.stringify(drawing.looks.map((look, i) => [look, drawing.lines[i]?.low !== null, (drawing.lines[i]?.raw.length ?? 0) < FEW, drawing.lines[i]?.smoothed !== drawing.lines[i]?.raw]));
    if (!this.#plot || afresh || shape !== this.#shape) {
      this.#shape = shape;
      this.destroy();
      this.#plot = new uPlot(this.#options(), data, this.#host);
    } else {
      this.#plot.setData(data);
    }
  }

  resize() {
    if (this.#plot && this.#host.clientWidth) this.#plot.setSize(this.#size());
  }

  /** Move the crosshair by points, on this chart and all others. @param {number} by @returns {boolean} whether there was anything to move on */
  step(by) {
    const plot = this.#plot;
    const xs = plot?.data[0];
    if (!plot || !xs?.length) return false;
    const from = plot.cursor.idx ?? (by > 0 ? -1 : xs.length);
    const index = Math.min(xs.length - 1, Math.max(0, from + by));
    const { clientWidth: width, clientHeight: height } = plot.over;
    const [left, top] = [plot.valToPos(/** @type {number} */ (xs[index]), "x"), height / 2];
    plot.setCursor({ left, top });
    sync.pub("mousemove", plot, left, top, width, height, index);
    return true;
  }

  destroy() {
    this.#plot?.destroy();
    this.#plot = null;
  }

  #size() {
    return { width: this.#host.clientWidth, height: this.#host.clientHeight };
  }

  /** @returns {uPlot.Options} */
  #options() {
    const looks = this.#drawing.looks;
    /** @type {uPlot.Axis} */
    const axis = {
      stroke: () => colour("--text-3"),
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { show: false },
      font: FONT,
      gap: 4,
      values: (_, splits) => axisLabels(splits),
    };
    return {
      ...this.#size(),
      padding: [6, 10, 0, 0],
      legend: { show: false },
      cursor: {
        sync: { key: sync.key, scales: ["x", null], setSeries: false },
        drag: { x: true, y: false, setScale: false },
        points: { show: false },
        y: false,
      },
      scales: {
        x: { time: false, range: () => this.#window() },
        y: { range: () => this.#yRange() },
      },
      axes: [{ ...axis, size: 22, space: 60, incrs: WHOLE }, { ...axis, size: (_, labels) => Math.max(46, 12 + 6.3 * Math.max(0, ...(labels ?? []).map((label) => `${label}`.length))), space: 28 }],
      series: [{}, ...this.#drawing.lines.flatMap((line, i) => this.#series(line, /** @type {Look} */ (looks[i])))],
      bands: this.#drawing.lines.flatMap((line, i) =>
        line.low === null ? [] : [{ series: /** @type {[number, number]} */ ([1 + COLUMNS * i + 3, 1 + COLUMNS * i + 2]), fill: faded(runColour(/** @type {Look} */ (looks[i]).slot), 0.13) }],
      ),
      hooks: {
        draw: [(plot) => this.#decorate(plot)],
        setCursor: [(plot) => this.#hooks.onCursor(plot.cursor.left === undefined || plot.cursor.left < 0 ? null : plot.posToVal(plot.cursor.left, "x"))],
        setSelect: [
          (plot) => {
            const { left, width } = plot.select;
            if (width < 4) return;
            this.#hooks.onWindow([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
            plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          },
        ],
        ready: [(plot) => plot.over.addEventListener("dblclick", () => this.#hooks.onWindow(null))],
      },
    };
  }

  /** Raw, smoothed, low, high of one line. @param {Line} line @param {Look} look @returns {uPlot.Series[]} */
  #series(line, look) {
    const stroke = runColour(look.slot);
    const smoothed = line.smoothed !== line.raw;
    const few = look.sparse || line.raw.length < FEW;
    const points = { show: few, size: 4, width: 1, stroke, fill: stroke };
    return [
      { stroke: faded(stroke, 0.35), width: 1, show: smoothed && !look.thin, points: { show: false }, spanGaps: true },
      { stroke, width: look.thin ? 1 : 1.5, dash: look.dash, points, spanGaps: true },
      { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true },
      { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true },
    ];
  }

  /** @returns {[number, number]} */
  #window() {
    const { lines, window } = this.#drawing;
    const ends = lines.flatMap((line) => [line.x[0], line.x.at(-1), ...line.ticks.map((tick) => tick.x)]).filter((x) => x !== undefined && Number.isFinite(x));
    return xRange(ends.length ? Math.min(.../** @type {number[]} */ (ends)) : undefined, ends.length ? Math.max(.../** @type {number[]} */ (ends)) : undefined, window);
  }

  /** Over what the window shows. @returns {[number, number]} */
  #yRange() {
    const [from, to] = this.#window();
    return yRange(
      this.#drawing.lines.flatMap((line) =>
        [line.raw, line.low ?? [], line.high ?? []].map((column) => column.filter((_, i) => /** @type {number} */ (line.x[i]) >= from && /** @type {number} */ (line.x[i]) <= to)),
      ),
    );
  }

  /** @param {uPlot} plot */
  #decorate(plot) {
    const { ctx, bbox } = plot;
    const [from, to] = this.#window();
    const dpr = devicePixelRatio;
    ctx.save();
    ctx.lineWidth = dpr;
    for (const { x, kind } of this.#drawing.marks) {
      if (x < from || x > to) continue;
      ctx.strokeStyle = colour(kind === "now" ? "--text-1" : "--line-control");
      ctx.setLineDash(kind === "now" ? [] : [dpr, 3 * dpr]);
      const left = Math.round(plot.valToPos(x, "x", true));
      ctx.beginPath();
      ctx.moveTo(left, bbox.top);
      ctx.lineTo(left, bbox.top + bbox.height);
      ctx.stroke();
      if (kind === "forked") {
        const middle = bbox.top + 5 * dpr;
        ctx.fillStyle = colour("--accent");
        ctx.beginPath();
        ctx.moveTo(left, middle - 5 * dpr);
        ctx.lineTo(left + 5 * dpr, middle);
        ctx.lineTo(left, middle + 5 * dpr);
        ctx.lineTo(left - 5 * dpr, middle);
        ctx.fill();
      }
      if (kind !== "resumed") continue;
      ctx.fillStyle = colour("--warn");
      ctx.beginPath();
      ctx.moveTo(left - 4 * dpr, bbox.top);
      ctx.lineTo(left + 4 * dpr, bbox.top);
      ctx.lineTo(left, bbox.top + 6 * dpr);
      ctx.fill();
    }
    ctx.setLineDash([]);
    ctx.strokeStyle = colour("--bad");
    ctx.lineWidth = 2 * dpr;
    for (const line of this.#drawing.lines) {
      for (const { x } of line.ticks) {
        if (!(x >= from && x <= to)) continue;
        const left = Math.round(plot.valToPos(x, "x", true));
        ctx.beginPath();
        ctx.moveTo(left, bbox.top + bbox.height - 7 * dpr);
        ctx.lineTo(left, bbox.top + bbox.height);
        ctx.stroke();
      }
    }
    ctx.restore();
  }
}
