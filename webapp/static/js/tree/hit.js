// Which node lies under a point. Pure: row by y, then a binary search by x.
import { firstRightOf, nodeAt } from "./layout.js";

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
  const place = firstRightOf(tree, row, x);
  if (place >= /** @type {number} */ (tree.rowStart[row + 1])) return -1;
  const node = nodeAt(tree, place);
  return /** @type {number} */ (tree.x[node]) <= x ? node : -1;
}

/** Index in `leafOrder` of the first leaf whose right edge lies right of `x`. @param {Layout} tree @param {number} x */
export function leafFrom(tree, x) {
  let low = 0;
  let high = tree.leafOrder.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    const leaf = /** @type {number} */ (tree.leafOrder[middle]);
    if (/** @type {number} */ (tree.x[leaf]) + /** @type {number} */ (tree.width[leaf]) > x) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** @param {Layout} tree @param {number} x */
function leafUnder(tree, x) {
  const leaf = tree.leafOrder[leafFrom(tree, x)];
  return leaf !== undefined && /** @type {number} */ (tree.x[leaf]) <= x ? leaf : -1;
}
