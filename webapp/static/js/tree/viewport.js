// Which part of the tree the window shows. Pure. Depth is never zoomed: rows keep their height, so text stays readable.

/** The whole tree. @param {Layout} tree @returns {View} */
export const fit = (tree) => ({ x0: 0, x1: tree.total || 1 });

/** One subtree, edge to edge. @param {Layout} tree @param {number} node @returns {View} */
export function around(tree, node) {
  const x0 = /** @type {number} */ (tree.x[node]);
  const width = /** @type {number} */ (tree.width[node]);
  return width > 0 ? { x0, x1: x0 + width } : fit(tree);
}

/**
 * What d3-zoom's transform shows of a tree of width `total` on a canvas `width` pixels wide.
 * @param {{k: number, x: number}} transform @param {number} width @param {number} total @returns {View}
 */
export function viewOf(transform, width, total) {
  const unitsPerPixel = total / width / transform.k;
  const x0 = 0 - transform.x * unitsPerPixel;
  return { x0, x1: x0 + width * unitsPerPixel };
}

/** The opposite of `viewOf`. @param {View} view @param {number} width @param {number} total */
export function transformOf(view, width, total) {
  const k = total / (view.x1 - view.x0);
  return { k, x: (-view.x0 * width * k) / total };
}

/** The nearest view that holds `node`, as wide as `view`; `view` itself if it holds it already. @param {Layout} tree @param {View} view @param {number} node @returns {View} */
export function bringIn(tree, view, node) {
  const x0 = /** @type {number} */ (tree.x[node]);
  const x1 = x0 + /** @type {number} */ (tree.width[node]);
  const { total } = tree;
  const span = view.x1 - view.x0;
  // Wider than the window: enough that its middle is in it, so that its label can be read.
  if (x1 - x0 >= span) {
    const middle = (x0 + x1) / 2;
    if (middle > view.x0 && middle < view.x1) return view;
    return clamp({ x0: middle - span / 2, x1: middle + span / 2 }, total);
  }
  if (x0 >= view.x0 && x1 <= view.x1) return view;
  const left = x0 < view.x0 ? x0 : x1 - span;
  return clamp({ x0: left, x1: left + span }, total);
}

/** @param {View} view @param {number} total @returns {View} */
function clamp(view, total) {
  const span = Math.min(view.x1 - view.x0, total);
  const x0 = Math.min(Math.max(view.x0, 0), total - span);
  return { x0, x1: x0 + span };
}
