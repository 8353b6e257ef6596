// One cell per step, shaded by the mean value of its trees; click or arrow keys choose a step.
import { scaleLinear } from "../../vendor/d3.js";
import { number } from "../core/format.js";
import { colour, theme } from "../core/theme.js";
import { colourScale, valueRange } from "./colour.js";
import { sized } from "./paint.js";

const HEIGHT = 28;

/** @typedef {{step: number, n_trees: number, value_mean: number | null}} StepCell */

export class StepBar {
  /** @type {StepCell[]} */ #cells = [];
  #current = -1;
  #total = 1;
  #canvas;

  /** @param {HTMLCanvasElement} canvas @param {(step: number) => void} onChoose */
  constructor(canvas, onChoose) {
    this.#canvas = canvas;
    canvas.addEventListener("click", (event) => {
      const step = this.#scale().invert(event.offsetX);
      const cell = this.#nearest(step);
      if (cell) onChoose(cell.step);
    });
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity }[event.key];
      if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const step = this.beside(by);
      if (step !== null) onChoose(step);
    });
    new ResizeObserver(() => this.#draw()).observe(/** @type {HTMLElement} */ (canvas.parentElement));
  }

  /** @param {StepCell[]} cells rising @param {number} current @param {number} total steps of the run */
  show(cells, current, total) {
    this.#cells = cells;
    this.#current = current;
    this.#total = Math.max(total, cells.at(-1)?.step ?? 1);
    const cell = cells.find(({ step }) => step === current);
    this.#canvas.setAttribute("aria-valuemin", String(cells[0]?.step ?? 0));
    this.#canvas.setAttribute("aria-valuemax", String(cells.at(-1)?.step ?? 0));
    this.#canvas.setAttribute("aria-valuenow", String(current));
    this.#canvas.setAttribute("aria-valuetext", `Step ${current}, mean value ${number(cell?.value_mean, 2)}`);
    this.#draw();
  }

  /** The step some cells further, or null at the end. @param {number} by */
  beside(by) {
    const at = this.#cells.findIndex(({ step }) => step >= this.#current);
    const from = at === -1 ? this.#cells.length - 1 : at;
    const cell = this.#cells[Math.min(this.#cells.length - 1, Math.max(0, from + by))];
    return cell && cell.step !== this.#current ? cell.step : null;
  }

  redraw() {
    this.#draw();
  }

  /** @param {number} step */
  #nearest(step) {
    let best = this.#cells[0];
    for (const cell of this.#cells) if (best && Math.abs(cell.step - step) < Math.abs(best.step - step)) best = cell;
    return best;
  }

  #scale() {
    return scaleLinear().domain([0.5, this.#total + 0.5]).range([0, this.#canvas.clientWidth || 1]);
  }

  #draw() {
    const width = this.#canvas.clientWidth;
    if (!width) return;
    const { ctx } = sized(this.#canvas, width, HEIGHT);
    const x = this.#scale();
    const [low, high] = valueRange(this.#cells.map((cell) => cell.value_mean ?? NaN));
    const fills = colourScale("value", high, theme(), low);
    ctx.fillStyle = colour("--sunken");
    ctx.fillRect(0, 6, width, HEIGHT - 12);
    for (const { step, value_mean: value } of this.#cells) {
      const [left, right] = [x(step - 0.5), x(step + 0.5)];
      ctx.fillStyle = value === null ? colour("--line-control") : fills.fill(fills.level(value));
      ctx.fillRect(left, 6, Math.max(right - left - (right - left > 4 ? 1 : 0), 1), HEIGHT - 12);
    }
    const at = x(this.#current);
    ctx.fillStyle = colour("--text-1");
    ctx.fillRect(Math.round(at) - 1, 1, 2, HEIGHT - 2);
    ctx.beginPath();
    ctx.arc(at, 3, 3, 0, 7);
    ctx.fill();
  }
}
