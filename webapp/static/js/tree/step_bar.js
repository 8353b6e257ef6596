// One cell per step, shaded by a mean over its trees. A click or the arrow keys choose a step, dragging a range of steps.
import { number } from "../core/format.js";
import { colour, theme } from "../core/theme.js";
import { colourScale } from "./colour.js";
import { sized } from "./paint.js";
import { shadeScale } from "./shades.js";

const HEIGHT = 28;
const DRAG = 5; // pixels, from which on a click is a drag

/** @typedef {import("./shades.js").StepCell} StepCell */
/** @typedef {{first: number, last: number}} StepRange both ends included */
/**
 * @typedef {object} StepBarState
 * @property {StepCell[]} cells rising
 * @property {number} current
 * @property {StepRange | null} range that the list is of; null: one step
 * @property {number} total steps of the run
 * @property {{sort: string, title: string}} shade what the means are of
 */
/**
 * @typedef {object} StepBarHooks
 * @property {(step: number) => void} onChoose
 * @property {(range: StepRange) => void} onRange
 * @property {(by: -1 | 1) => void} onMove to the step beside
 * @property {(text: string) => void} onHint
 */

export class StepBar {
  /** @type {StepBarState} */ #state = { cells: [], current: -1, range: null, total: 1, shade: { sort: "value", title: "V" } };
  /** @type {{from: number, to: number, pointer: number} | null} */ #drag = null;
  #canvas;
  #hooks;

  /** @param {HTMLCanvasElement} canvas @param {StepBarHooks} hooks */
  constructor(canvas, hooks) {
    this.#canvas = canvas;
    this.#hooks = hooks;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.#drag = { from: event.offsetX, to: event.offsetX, pointer: event.pointerId };
    });
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", () => this.#drop());
    canvas.addEventListener("pointercancel", () => this.#cancel());
    canvas.addEventListener("pointerleave", () => this.#drag ?? hooks.onHint(""));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#draw()).observe(/** @type {HTMLElement} */ (canvas.parentElement));
  }

  /** @param {StepBarState} state */
  show(state) {
    this.#state = { ...state, total: Math.max(state.total, state.cells.at(-1)?.step ?? 1) };
    const { cells, current, range, shade } = this.#state;
    const cell = this.#cellOf(current);
    this.#canvas.setAttribute("aria-valuemin", String(cells[0]?.step ?? 0));
    this.#canvas.setAttribute("aria-valuemax", String(cells.at(-1)?.step ?? 0));
    this.#canvas.setAttribute("aria-valuenow", String(current));
    const words = range ? `Steps ${range.first} to ${range.last}` : `Step ${current}`;
    this.#canvas.setAttribute("aria-valuetext", `${words}, mean ${shade.sort === "value" ? "value" : shade.title} ${number(cell?.mean, 2)}`);
    this.#draw();
  }

  redraw() {
    this.#draw();
  }

  /** What the shades mean. */
  words() {
    const { cells, shade } = this.#state;
    if (!cells.some(({ mean }) => mean !== null)) return `no ${shade.title} to shade by`;
    const { low, high, flip } = shadeScale(shade.sort, cells);
    const [pale, deep] = flip ? [high, low] : [low, high];
    return `shaded by mean ${shade.title}, ${number(pale, 2)} to ${number(deep, 2)}`;
  }

  /** The cell that stands for a step: the last one that begins at or before it. @param {number} step */
  #cellOf(step) {
    const { cells } = this.#state;
    let [low, high] = [0, cells.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (/** @type {StepCell} */ (cells[middle]).step <= step) low = middle + 1;
      else high = middle;
    }
    return cells[low - 1];
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape" && this.#drag) this.#cancel();
    if (by === undefined) return;
    event.preventDefault();
    if (by === 1 || by === -1) return this.#hooks.onMove(by);
    const { cells, current } = this.#state;
    const at = cells.findIndex(({ step }) => step >= current);
    const from = at === -1 ? cells.length - 1 : at;
    const cell = cells[Math.min(cells.length - 1, Math.max(0, from + by))];
    if (cell && cell.step !== current) this.#hooks.onChoose(cell.step);
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const cell = this.#nearest(event.offsetX);
    if (this.#drag) {
      this.#drag.to = event.offsetX;
      if (this.#isDrag()) {
        if (!this.#canvas.hasPointerCapture(this.#drag.pointer)) this.#canvas.setPointerCapture(this.#drag.pointer);
        const range = this.#dragged();
        if (range) this.#hooks.onHint(`steps ${range.first} to ${range.last}`);
        return this.#draw();
      }
    }
    if (cell) this.#hooks.onHint(`step ${cell.step} · mean ${this.#state.shade.title} ${number(cell.mean, 2)} · ${cell.n_trees} tree${cell.n_trees === 1 ? "" : "s"}`);
  }

  #drop() {
    if (!this.#drag) return;
    const range = this.#isDrag() ? this.#dragged() : null;
    const cell = this.#nearest(this.#drag.to);
    this.#drag = null;
    if (range && range.first < range.last) this.#hooks.onRange(range);
    else if (cell) this.#hooks.onChoose(cell.step);
    this.#draw();
  }

  #cancel() {
    this.#drag = null;
    this.#draw();
  }

  #isDrag() {
    return this.#drag !== null && Math.abs(this.#drag.to - this.#drag.from) >= DRAG;
  }

  /** @returns {StepRange | null} */
  #dragged() {
    if (!this.#drag) return null;
    const { from, to } = this.#drag;
    const [first, last] = [this.#nearest(Math.min(from, to)), this.#nearest(Math.max(from, to))];
    return first && last ? { first: first.step, last: last.step } : null;
  }

  /** @param {number} x */
  #nearest(x) {
    const step = this.#scale().invert(x);
    let best = this.#state.cells[0];
    for (const cell of this.#state.cells) if (best && Math.abs(cell.step - step) < Math.abs(best.step - step)) best = cell;
    return best;
  }

  #scale() {
    const width = this.#canvas.clientWidth || 1;
    const { total } = this.#state;
    return Object.assign((/** @type {number} */ step) => ((step - 0.5) / total) * width, {
      invert: (/** @type {number} */ x) => 0.5 + (x / width) * total,
    });
  }

  #draw() {
    const width = this.#canvas.clientWidth;
    if (!width) return;
    const { ctx } = sized(this.#canvas, width, HEIGHT);
    const { cells, current, shade } = this.#state;
    const x = this.#scale();
    const { palette, low, high, flip } = shadeScale(shade.sort, cells);
    const fills = colourScale(palette, high, theme(), low);
    ctx.fillStyle = colour("--sunken");
    ctx.fillRect(0, 6, width, HEIGHT - 12);
    for (const [i, { step, mean }] of cells.entries()) {
      // A cell that stands for several steps reaches to the next one.
      const next = cells[i + 1]?.step ?? step + 1;
      const span = Math.min(next - step, cells.length > 1 ? Math.ceil(this.#state.total / 600) : 1);
      const [left, right] = [x(step - 0.5), x(step - 0.5 + Math.max(1, span))];
      ctx.fillStyle = mean === null ? colour("--line-control") : fills.fill(fills.level(flip ? low + high - mean : mean));
      ctx.fillRect(left, 6, Math.max(right - left - (right - left > 4 ? 1 : 0), 1), HEIGHT - 12);
    }
    const range = (this.#isDrag() ? this.#dragged() : null) ?? this.#state.range;
    ctx.fillStyle = colour("--text-1");
    if (range) {
      const [left, right] = [x(range.first - 0.5), x(range.last + 0.5)];
      ctx.fillRect(left, 2, Math.max(2, right - left), 2);
      ctx.fillRect(left, HEIGHT - 4, Math.max(2, right - left), 2);
      ctx.fillRect(left, 2, 2, HEIGHT - 4);
      ctx.fillRect(Math.max(left, right - 2), 2, 2, HEIGHT - 4);
      return;
    }
    const at = x(current);
    ctx.fillRect(Math.round(at) - 1, 1, 2, HEIGHT - 2);
    ctx.beginPath();
    ctx.arc(at, 3, 3, 0, 7);
    ctx.fill();
  }
}
