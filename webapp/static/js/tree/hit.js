// Which node lies under a point. Pure: row by y, then a binary search by x.
import { firstRightOf } from "./layout.js";

/**
 * @param {Layout} tree @param {View} view @param {number} width of the canvas, pixels @param {number} rowHeight pixels
 * @param {number} px from the left edge @param {number} py from the top edge
 * @returns {number} the node, or -1
 */
export function hit(tree, view, width, rowHeight, px, py) {
  if (px < 0 || px >= width || py < 0) return -1;
  const row = Math.floor(py / rowHeight);
  const x = view.x0 + (px / width) * (view.x1 - view.x0);
  // Below the rows lie the outcomes of the leaves.
  if (row > tree.maxDepth) return leafUnder(tree, x);
  const node = firstRightOf(tree, row, x);
  return node < /** @type {number} */ (tree.rowStart[row + 1]) && /** @type {number} */ (tree.x[node]) <= x ? node : -1;
}

/** @param {Layout} tree @param {number} x */
function leafUnder(tree, x) {
  return x < 0 || x >= tree.leafAt.length ? -1 : /** @type {number} */ (tree.leafAt[Math.floor(x)]);
}
