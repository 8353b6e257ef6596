// Where every node of an icicle lies: linear passes over typed arrays, no recursion. Pure.

/** @param {ArrayLike<number>} column @param {number} i */
const at = (column, i) => /** @type {number} */ (column[i]);

/** What an icicle's widths may stand for. */
export const WIDTHS = /** @type {const} */ (["leaves", "tokens", "equal", "loss"]);

/**
 * Who is whose child.
 * @param {Shape["nChildren"]} nChildren of every node, breadth-first: node 0 is the root, children are contiguous
 * @returns {Shape}
 */
export function shapeOf(nChildren) {
  const n = nChildren.length;
  const parent = new Int32Array(n).fill(-1);
  const firstChild = new Int32Array(n).fill(-1);
  const depth = new Uint16Array(n);
  let next = 1;
  for (let i = 0; i < n; i++) {
    const count = at(nChildren, i);
    if (!count) continue;
    firstChild[i] = next;
    parent.fill(i, next, next + count);
    depth.fill(at(depth, i) + 1, next, next + count);
    next += count;
  }
  const maxDepth = n ? at(depth, n - 1) : 0;
  const rowStart = new Int32Array(maxDepth + 2);
  for (let i = 0; i < n; i++) rowStart[at(depth, i) + 1] = i + 1;
  return { n, parent, firstChild, nChildren, depth, rowStart, maxDepth };
}

/**
 * Width is answers, children in sampling order.
 * @param {ArrayLike<number>} parent breadth-first: parent[0] = -1, otherwise parent[i] < i and never falling
 * @param {ArrayLike<number>} [copies] of a leaf, how many answers it stands for; all 1 when left out
 * @returns {Layout}
 */
export function layout(parent, copies) {
  const nChildren = new Uint32Array(parent.length);
  for (let i = 1; i < parent.length; i++) nChildren[at(parent, i)] = at(nChildren, at(parent, i)) + 1;
  return place(shapeOf(nChildren), { copies });
}

/**
 * Width of a node, in units of its own: of a leaf `leaves` counts the sampled answers that ended in it, an inner node is as
 * wide as its children together. `tokens` and `loss` also count the node's own part, which lies right of its children.
 *   tokens  sampled tokens at and below the node (a leaf at least 1)
 *   equal   every child the same share of its parent
 *   loss    |A| · tokens, summed; under a credit per answer an inner segment counts with the sum over its answers
 * @param {Shape} shape
 * @param {object} [how]
 * @param {Width} [how.width] @param {ArrayLike<number> | null | undefined} [how.copies] @param {ArrayLike<number>} [how.tokens]
 * @param {ArrayLike<number>} [how.advantage] NaN: no weight @param {(node: number) => boolean} [how.isPerPath] its answers carry the credit
 * @param {ArrayLike<number> | null} [how.by] children in falling order of this, missing last; sampling order when left out
 * @param {Layout} [before] whose leaf counts are taken over
 * @returns {Layout}
 */
export function place(shape, { width: kind = "leaves", copies, tokens = [], advantage = [], isPerPath = () => false, by = null } = {}, before) {
  const { n, parent, nChildren } = shape;
  const leaves = before?.leaves ?? sumUp(shape, new Int32Array(n), (i) => (at(nChildren, i) ? 0 : Math.max(1, copies ? at(copies, i) : 1)));
  if (n && leaves[0] === 0) leaves[0] = 1;
  const { rowNodes, places } = by ? ordered(shape, by) : { rowNodes: null, places: null };

  /** @type {Layout["width"]} */
  let width = leaves;
  if (kind === "tokens") {
    width = sumUp(shape, new Float64Array(n), (i) => (i === 0 ? 0 : at(nChildren, i) ? at(tokens, i) : Math.max(1, at(tokens, i))));
  } else if (kind === "loss") {
    const net = sumUp(shape, new Float64Array(n), (i) => (at(nChildren, i) || Number.isNaN(at(advantage, i)) ? 0 : at(leaves, i) * at(advantage, i)));
    width = sumUp(shape, new Float64Array(n), (i) => {
      const a = i > 0 && isPerPath(i) ? at(net, i) : at(advantage, i);
      return i === 0 || Number.isNaN(a) ? 0 : Math.abs(a) * at(tokens, i);
    });
  } else if (kind === "equal") {
    width = new Float64Array(n);
    width[0] = 1;
    for (let i = 1; i < n; i++) width[i] = at(width, at(parent, i)) / at(nChildren, at(parent, i));
  }

  // Top down: offsets. `next` is where a node's next child starts.
  const x = width === leaves ? new Int32Array(n) : new Float64Array(n);
  const next = width === leaves ? new Int32Array(n) : new Float64Array(n);
  const nDistinct = sumUp(shape, new Int32Array(n), (i) => (at(nChildren, i) ? 0 : 1));
  const rank = new Int32Array(n);
  const nextRank = new Int32Array(n);
  const leafOrder = new Int32Array(n ? at(nDistinct, 0) : 0);
  for (let p = 0; p < n; p++) {
    const i = rowNodes ? at(rowNodes, p) : p;
    if (i > 0) {
      const up = at(parent, i);
      x[i] = at(next, up);
      next[up] = at(next, up) + at(width, i);
      rank[i] = at(nextRank, up);
      nextRank[up] = at(nextRank, up) + at(nDistinct, i);
    }
    next[i] = at(x, i);
    nextRank[i] = at(rank, i);
    if (!at(nChildren, i)) leafOrder[at(rank, i)] = i;
  }
  return { ...shape, leaves, width, x, total: n ? at(width, 0) : 0, rowNodes, places, leafOrder };
}

/**
 * Own parts summed up into every node, in place. Going backwards, a node is complete before its parent is reached.
 * @template {Int32Array | Float64Array} T
 * @param {Shape} shape @param {T} sums @param {(node: number) => number} own @returns {T}
 */
function sumUp({ n, parent }, sums, own) {
  for (let i = n - 1; i >= 0; i--) {
    sums[i] = at(sums, i) + own(i);
    if (i > 0) sums[at(parent, i)] = at(sums, at(parent, i)) + at(sums, i);
  }
  return sums;
}

/** Nodes of each row from left to right, children in falling order of `by`; and the place of each node. @param {Shape} shape @param {ArrayLike<number>} by */
function ordered({ n, firstChild, nChildren }, by) {
  const rowNodes = new Int32Array(n);
  const places = new Int32Array(n);
  const size = (/** @type {number} */ i) => (Number.isNaN(at(by, i)) ? -Infinity : at(by, i));
  let filled = Math.min(1, n);
  for (let p = 0; p < n; p++) {
    const node = at(rowNodes, p);
    places[node] = p;
    const count = at(nChildren, node);
    if (!count) continue;
    const children = rowNodes.subarray(filled, filled + count);
    for (let k = 0; k < count; k++) children[k] = at(firstChild, node) + k;
    if (count > 1) children.sort((a, b) => (size(b) > size(a) ? 1 : size(b) < size(a) ? -1 : a - b));
    filled += count;
  }
  return { rowNodes, places };
}

/** The node that stands at a place of its row. @param {Layout} tree @param {number} place */
export const nodeAt = (tree, place) => (tree.rowNodes ? at(tree.rowNodes, place) : place);

/** The place of a node; places rise from left to right in a row, and from row to row. @param {Layout} tree @param {number} node */
export const placeOf = (tree, node) => (tree.places ? at(tree.places, node) : node);

/**
 * First place of a row whose node's right edge lies right of `x`; rowStart[row + 1] if there is none. Binary search.
 * @param {Layout} tree @param {number} row @param {number} x in the layout's units
 */
export function firstRightOf(tree, row, x) {
  let low = at(tree.rowStart, row);
  let high = at(tree.rowStart, row + 1);
  while (low < high) {
    const middle = (low + high) >> 1;
    const node = nodeAt(tree, middle);
    if (at(tree.x, node) + at(tree.width, node) > x) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** First place of a row whose node begins at `x` or right of it. @param {Layout} tree @param {number} row @param {number} x */
function firstFrom(tree, row, x) {
  let low = at(tree.rowStart, row);
  let high = at(tree.rowStart, row + 1);
  while (low < high) {
    const middle = (low + high) >> 1;
    if (at(tree.x, nodeAt(tree, middle)) >= x) high = middle;
    else low = middle + 1;
  }
  return low;
}

/**
 * The rectangles of a row that lie in the view, left to right. Nodes narrower than `minimum` pixels are merged with the
 * ones after them until the rectangle is that wide, so a row never holds many more rectangles than the canvas has pixels; how
 * many nodes a rectangle stands for does not matter to the time this takes.
 * @param {Layout} tree @param {number} row @param {View} view @param {number} width of the canvas, pixels @param {number} minimum
 * @param {(from: number, to: number, left: number, right: number) => void} emit places, `to` inclusive; pixels
 */
export function eachBox(tree, row, view, width, minimum, emit) {
  const scale = width / (view.x1 - view.x0);
  const end = firstFrom(tree, row, view.x1);
  const leftOf = (/** @type {number} */ node) => (at(tree.x, node) - view.x0) * scale;
  const rightOf = (/** @type {number} */ node) => (at(tree.x, node) + at(tree.width, node) - view.x0) * scale;
  for (let i = firstRightOf(tree, row, view.x0); i < end; ) {
    const node = nodeAt(tree, i);
    const left = leftOf(node);
    const right = rightOf(node);
    if (right - left >= minimum) {
      emit(i, i, left, right);
      i++;
      continue;
    }
    // The first that reaches `minimum` pixels from here, and not one that is wide enough for itself or lies across a gap:
    // branches that ended earlier are not painted over.
    let low = i;
    let high = end - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rightOf(nodeAt(tree, middle)) - left >= minimum) high = middle;
      else low = middle + 1;
    }
    if (low > i) {
      const last = nodeAt(tree, low);
      if (rightOf(last) - leftOf(last) >= minimum || leftOf(last) - left >= minimum) low--;
    }
    emit(i, low, left, rightOf(nodeAt(tree, low)));
    i = low + 1;
  }
}

/** The rectangles of `eachBox`, as a list. @param {Layout} tree @param {number} row @param {View} view @param {number} width @returns {Box[]} */
export function visibleBoxes(tree, row, view, width, minimum = 1) {
  /** @type {Box[]} */
  const boxes = [];
  eachBox(tree, row, view, width, minimum, (from, to, left, right) => boxes.push({ from, to, left, right }));
  return boxes;
}
