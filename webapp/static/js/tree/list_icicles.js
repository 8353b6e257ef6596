// The pictures of a list's rows: small trees in miniature, of large ones their outcomes. Asked for after the list is there,
// some rows at a time, in the colours of the trees' own pages.
import { json } from "../core/api.js";
import { theme } from "../core/theme.js";
import { commonLimit, commonValues, drawMini } from "./mini.js";
import { hatch, outcome, sized } from "./paint.js";
import { OUTCOMES, outcomeShares } from "./shades.js";

const AT_ONCE = 25;
const ICICLE = 24;
const HEIGHT = 10; // of a bar of outcomes; the rest of the line is words
export class ListIcicles {
  /** null: too large. @type {Map<number, Icicle | null>} */ #known = new Map();
  /** The run's own end of the scale, as on the trees' pages. @type {number | null} */ #limit = null;
  #run;
  /** A newer list is there: older answers are only kept. */ #round = 0;

  /** @param {number} run */
  constructor(run) {
    this.#run = run;
  }

  /** The pictures of the rows that are there now. @param {(message: string) => void} onProblem */
  async show(onProblem) {
    const round = ++this.#round;
    this.draw();
    const missing = this.#canvases().map(({ id }) => id).filter((id) => !this.#known.has(id));
    for (let i = 0; i < missing.length; i += AT_ONCE) {
      try {
        const { icicles, limit } = await json(`/runs/${this.#run}/icicles?trees=${missing.slice(i, i + AT_ONCE).join(",")}`);
        this.#limit = limit;
        for (const [id, icicle] of Object.entries(icicles)) this.#known.set(Number(id), icicle);
      } catch (error) {
        if (!(error instanceof Error)) throw error;
        if (round === this.#round) onProblem(`The pictures of the trees could not be read. ${error.message}`);
        return;
      }
      if (round !== this.#round) return;
      this.draw();
    }
    this.#forget();
  }

  draw() {
    const rows = this.#canvases();
    const there = rows.flatMap(({ id }) => this.#known.get(id) ?? []);
    const [limit, values] = [this.#limit ?? commonLimit(there), commonValues(there)];
    for (const { id, canvas } of rows) {
      const icicle = this.#known.get(id);
      if (icicle === undefined) continue; // not asked yet: its place is kept
      canvas.classList.add("is-drawn");
      if (icicle) drawMini(canvas, icicle, limit, values, ICICLE);
      else this.#drawOutcomes(canvas);
    }
  }

  /** @param {HTMLCanvasElement} canvas */
  #drawOutcomes(canvas) {
    const width = canvas.clientWidth;
    if (!width) return;
    const { ctx, dpr } = sized(canvas, width, HEIGHT);
    const hatching = hatch(ctx, dpr);
    ctx.clearRect(0, 0, width, HEIGHT);
    let left = 0;
    for (const [i, share] of outcomeShares(canvas.dataset.outcomes ?? "").entries()) {
      if (!share) continue;
      const right = left + share * width;
      outcome(ctx, /** @type {string} */ (OUTCOMES[i]), { left, right, top: 1, height: 8 }, theme(), hatching);
      left = right;
    }
    canvas.parentElement?.classList.add("is-large");
  }

  #canvases() {
    const found = /** @type {NodeListOf<HTMLCanvasElement>} */ (document.querySelectorAll("canvas[data-icicle]"));
    return [...found].map((canvas) => ({ canvas, id: Number(canvas.dataset.icicle) }));
  }

  /** Pictures of earlier lists, when there are many. */
  #forget() {
    if (this.#known.size <= 1000) return;
    const shown = new Set(this.#canvases().map(({ id }) => id));
    for (const id of this.#known.keys()) if (!shown.has(id)) this.#known.delete(id);
  }
}
