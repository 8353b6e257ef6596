// Probes in the icicle: a diamond at every node that has some, and below the tree a lane of their own with their
// continuations, dashed, one box each. They are no part of the tree: nothing here is counted, sized or coloured with it.
import { colour, theme } from "../core/theme.js";
import { outcome, textWidth } from "./paint.js";
import { FOLDED, laneBoxes } from "./probe_cells.js";
import { verdictGlyph } from "./signals.js";

const HEIGHT = 30;
const BOX = 20;
const GLYPH_FROM = 14;

export class ProbeLane {
  height = HEIGHT;
  /** @type {ReturnType<typeof laneBoxes>} */ #boxes = [];
  #top = 0;

  /**
   * @param {CanvasRenderingContext2D} ctx @param {Scene} scene
   * @param {{width: number, rows: number, top: number, selected: number, edges: (node: number) => [number, number], bottomOf: (node: number) => number, hatching: CanvasPattern}} where
   * `rows`: height of the tree's rows; `top`: of the lane
   */
  draw(ctx, { probed = new Map(), continuation }, { width, rows, top, selected, edges, bottomOf, hatching }) {
    this.#top = top + 5;
    this.#boxes = laneBoxes(probed, selected, edges, width);
    ctx.save();
    ctx.beginPath();
    ctx.rect(0, 0, width, rows);
    ctx.clip();
    for (const node of probed.keys()) {
      const [left, right] = edges(node);
      if (right < 0 || left > width) continue;
      probeDiamond(ctx, Math.min(Math.max(right - 9, left + 1, 8), width - 8), bottomOf(node) - 3, 6);
    }
    ctx.restore();
    ctx.save();
    ctx.lineWidth = 1.5;
    for (const { node, id, verdict, count, left, width: size } of this.#boxes) {
      const box = { left: left + 3, right: left + size - 2, top: this.#top + 3, height: BOX - 6 };
      ctx.fillStyle = colour(id && id === continuation ? "--accent-bg" : "--bg");
      ctx.fillRect(left, this.#top, size - 2, BOX);
      const words = id || verdict ? (size >= GLYPH_FROM ? verdictGlyph(verdict) : "") : count > 1 ? `◇ ${count}` : "";
      if (words) {
        ctx.fillStyle = colour(verdict === "correct" ? "--ok" : verdict === "incorrect" || verdict === "error" ? "--bad" : "--text-2");
        ctx.fillText(words, left + (size - 2 - textWidth(ctx, words)) / 2, this.#top + BOX / 2 + 0.5);
      } else if (id) outcome(ctx, verdict, size >= GLYPH_FROM ? box : { ...box, left: left + 1, right: left + size - 2 }, theme(), hatching);
      const isCurrent = id !== "" && id === continuation;
      ctx.strokeStyle = colour(isCurrent ? "--text-1" : id || count > 1 ? "--accent" : "--text-3");
      ctx.globalAlpha = node === selected || size === FOLDED ? 1 : 0.75;
      ctx.setLineDash(isCurrent ? [] : id || count > 1 ? [3, 2] : [1, 2]);
      if (size >= GLYPH_FROM || isCurrent) ctx.strokeRect(left + 0.75, this.#top + 0.75, size - 3.5, BOX - 1.5);
      ctx.globalAlpha = 1;
    }
    // Boxes too narrow for a frame each have one round all of them, with room for what is to come.
    const narrow = this.#boxes.filter(({ width: size }) => size < GLYPH_FROM);
    const [first, last] = [narrow[0], narrow.at(-1)];
    if (first && last) {
      ctx.strokeStyle = colour("--accent");
      ctx.setLineDash([3, 2]);
      ctx.strokeRect(first.left - 0.75, this.#top + 0.75, last.left + last.width - first.left, BOX - 1.5);
    }
    const end = Math.max(0, ...this.#boxes.map(({ left, width: size }) => left + size)) + 6;
    const words = "sampled by hand, in no count";
    if (end + textWidth(ctx, words) < width) {
      ctx.fillStyle = colour("--text-2");
      ctx.fillText(words, end, this.#top + BOX / 2 + 0.5);
    }
    ctx.restore();
  }

  /** What the pointer is on. @param {number} x @param {number} y pixels in the canvas @returns {{node: number, id: string} | null} */
  at(x, y) {
    if (y < this.#top || y > this.#top + BOX) return null;
    return this.#boxes.find(({ left, width }) => x >= left && x < left + width) ?? null;
  }
}

/** The mark of probes. @param {CanvasRenderingContext2D} ctx @param {number} x its middle @param {number} y @param {number} radius @param {"dashed" | "dotted" | "solid"} [line] */
export function probeDiamond(ctx, x, y, radius, line = "dashed") {
  ctx.beginPath();
  ctx.moveTo(x, y - radius);
  ctx.lineTo(x + radius, y);
  ctx.lineTo(x, y + radius);
  ctx.lineTo(x - radius, y);
  ctx.closePath();
  ctx.fillStyle = colour("--bg");
  ctx.fill();
  ctx.strokeStyle = colour(line === "dotted" ? "--text-3" : line === "solid" ? "--text-1" : "--accent");
  ctx.lineWidth = line === "solid" ? 2 : 1.5;
  ctx.setLineDash(line === "dashed" ? [3, 2] : line === "dotted" ? [1, 2] : []);
  ctx.stroke();
  ctx.setLineDash([]);
}
