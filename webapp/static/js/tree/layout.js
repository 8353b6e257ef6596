// Where every node of an icicle lies: two linear passes over typed arrays, no recursion. Pure.

/**
 * Width is answers: a leaf is as wide as the sampled answers that ended in it, mostly 1, an inner node as wide as its children
 * together, children in sampling order.
 * @param {ArrayLike<number>} parent breadth-first: parent[0] = -1, otherwise parent[i] < i and never falling
 * @param {ArrayLike<number>} [copies] of a leaf, how many answers it stands for; all 1 when left out
 * @returns {Layout}
 */
export function layout(parent, copies) {
  const n = parent.length;
  const at = (/** @type {ArrayLike<number>} */ column, /** @type {number} */ i) => /** @type {number} */ (column[i]);
  const leaves = new Int32Array(n);
  const nChildren = new Int32Array(n);
  const firstChild = new Int32Array(n).fill(-1);
  const depth = new Uint16Array(n);
  const x = new Int32Array(n);

  // Bottom up: answers. Going backwards, a node is complete before its parent is reached.
  for (let i = n - 1; i > 0; i--) {
    if (at(leaves, i) === 0) leaves[i] = Math.max(1, copies ? at(copies, i) : 1);
    const up = at(parent, i);
    leaves[up] = at(leaves, up) + at(leaves, i);
    nChildren[up] = at(nChildren, up) + 1;
    firstChild[up] = i;
  }
  if (at(leaves, 0) === 0) leaves[0] = 1;

  // Top down: offsets. `next` is where a node's next child starts.
  const next = new Int32Array(n);
  for (let i = 1; i < n; i++) {
    const up = at(parent, i);
    depth[i] = at(depth, up) + 1;
    x[i] = at(next, up);
    next[up] = at(next, up) + at(leaves, i);
    next[i] = at(x, i);
  }

  const maxDepth = n ? at(depth, n - 1) : 0;
  const rowStart = new Int32Array(maxDepth + 2);
  const leafAt = new Int32Array(n ? at(leaves, 0) : 0);
  for (let i = 0; i < n; i++) {
    rowStart[at(depth, i) + 1] = i + 1;
    if (at(nChildren, i) === 0) leafAt.fill(i, at(x, i), at(x, i) + at(leaves, i));
  }
  return { n, parent: Int32Array.from(parent), depth, leaves, x, rowStart, firstChild, nChildren, leafAt, maxDepth };
}

/**
 * First node of a row whose right edge lies right of `x`; rowStart[row + 1] if there is none. Binary search.
 * @param {Layout} tree @param {number} row @param {number} x in leaves
 */
export function firstRightOf(tree, row, x) {
  let low = /** @type {number} */ (tree.rowStart[row]);
  let high = /** @type {number} */ (tree.rowStart[row + 1]);
  while (low < high) {
    const middle = (low + high) >> 1;
    if (/** @type {number} */ (tree.x[middle]) + /** @type {number} */ (tree.leaves[middle]) > x) high = middle;
    else low = middle + 1;
  }
  return low;
}

/**
 * The rectangles of a row that lie in the view, left to right. Nodes narrower than `minimum` pixels are merged with the
 * ones after them until the rectangle is wide enough, so a row never holds more rectangles than the canvas has pixels.
 * @param {Layout} tree @param {number} row @param {View} view @param {number} width of the canvas, pixels
 * @returns {Box[]}
 */
export function visibleBoxes(tree, row, view, width, minimum = 1) {
  const scale = width / (view.x1 - view.x0);
  const end = /** @type {number} */ (tree.rowStart[row + 1]);
  /** @type {Box[]} */
  const boxes = [];
  /** @type {Box | null} */
  let open = null;
  for (let i = firstRightOf(tree, row, view.x0); i < end; i++) {
    const x = /** @type {number} */ (tree.x[i]);
    if (x >= view.x1) break;
    const left = (x - view.x0) * scale;
    const right = (x + /** @type {number} */ (tree.leaves[i]) - view.x0) * scale;
    if (open && left - open.right > minimum) {
      // A gap: branches that ended earlier. Do not paint over it.
      boxes.push(open);
      open = null;
    }
    if (open) {
      open.to = i;
      open.right = right;
    } else if (right - left < minimum) {
      open = { from: i, to: i, left, right };
    } else {
      boxes.push({ from: i, to: i, left, right });
      continue;
    }
    if (open.right - open.left >= minimum) {
      boxes.push(open);
      open = null;
    }
  }
  if (open) boxes.push(open);
  return boxes;
}
