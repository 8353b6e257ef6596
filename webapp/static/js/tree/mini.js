// Small icicles in lists: the same colours as the tree's own page.
import { colour, theme } from "../core/theme.js";
import { colourScale, symmetricLimit, valueRange } from "./colour.js";
import { layout, visibleBoxes } from "./layout.js";
import { hatch, outcome, sized } from "./paint.js";
import { lookOf, VERDICTS } from "./signals.js";
import { fit } from "./viewport.js";

const HEIGHT = 28;
const OUTCOMES = 6;

/** One scale for a whole list, so that its trees can be compared. @param {Icicle[]} icicles */
export const commonLimit = (icicles) => symmetricLimit(icicles.flatMap((icicle) => icicle.advantage.map((advantage) => advantage ?? NaN)));

/** Likewise for trees without advantages. @param {Icicle[]} icicles */
export const commonValues = (icicles) => valueRange(icicles.flatMap((icicle) => (icicle.value ?? []).map((value) => value ?? NaN)));

/** @param {HTMLCanvasElement} canvas @param {Icicle} icicle @param {number} limit of advantages @param {[number, number]} values their range @param {number} [height] of it all, pixels */
export function drawMini(canvas, icicle, limit, values, height = HEIGHT) {
  const width = canvas.clientWidth;
  if (!width) return;
  const tree = layout(icicle.parent, icicle.copies);
  const view = fit(tree);
  const { ctx, dpr } = sized(canvas, width, height);
  const hatching = hatch(ctx, dpr);
  const scale = icicle.value ? colourScale("value", values[1], theme(), values[0]) : colourScale("advantage", limit, theme());
  const numbers = icicle.value ?? icicle.advantage;
  const fills = { context: colour("--sunken"), plain: colour("--line"), hatched: hatching };
  // The root has no advantage of its own; a list row shows the levels below it.
  const rows = Math.max(1, tree.maxDepth);
  const outcomes = height > 2 * HEIGHT ? 2 * OUTCOMES : OUTCOMES;
  const rowHeight = (height - outcomes - 1) / rows;
  for (let row = 1; row <= tree.maxDepth; row++) {
    for (const box of visibleBoxes(tree, row, view, width)) {
      const number = numbers[box.from];
      ctx.fillStyle = number == null ? fills[icicle.value ? "hatched" : lookOf(icicle.state[box.from] ?? 0, false)] : scale.fill(scale.level(number));
      ctx.fillRect(box.left, (row - 1) * rowHeight, Math.max(box.right - box.left - (box.right - box.left > 3 ? 1 : 0), 0.5), rowHeight - (rowHeight > 4 ? 1 : 0));
    }
  }
  const step = width / tree.total;
  for (const leaf of tree.leafOrder) {
    const x = /** @type {number} */ (tree.x[leaf]);
    for (let copy = 0; copy < /** @type {number} */ (tree.leaves[leaf]); copy++) {
      outcome(ctx, VERDICTS[icicle.verdict[leaf] ?? 0] ?? "none", { left: (x + copy) * step, right: (x + copy + 1) * step, top: height - outcomes, height: outcomes }, theme(), hatching);
    }
  }
}
