// Where the nodes of all trees laid over each other lie. Pure.

/**
 * @typedef {object} Merged
 * @property {number[]} parent breadth-first, -1 for node 0, which stands above the prompts
 * @property {number[]} bin value bin; -1 for node 0, 10 for no value
 * @property {number[]} leaves below, a merged one as often as it was sampled
 * @property {number[]} nodes laid together
 * @property {number} low
 * @property {number} high
 * @property {string} query
 */

/**
 * Left edge of each node and its depth (prompts: 0), in leaves. A node is as wide as its leaves; its children lie below it
 * from the left, and what ended earlier leaves room at the right.
 * @param {Merged} merged
 */
export function mergedLayout({ parent, leaves }) {
  const n = parent.length;
  const x = new Float64Array(n);
  const next = new Float64Array(n);
  const depth = new Int32Array(n).fill(-1);
  for (let i = 1; i < n; i++) {
    const up = /** @type {number} */ (parent[i]);
    depth[i] = /** @type {number} */ (depth[up]) + 1;
    x[i] = /** @type {number} */ (next[up]);
    next[up] = /** @type {number} */ (next[up]) + /** @type {number} */ (leaves[i]);
    next[i] = /** @type {number} */ (x[i]);
  }
  return { x, depth, maxDepth: n > 1 ? /** @type {number} */ (depth[n - 1]) : -1 };
}

/**
 * The node at a place, or -1. @param {Merged} merged @param {ReturnType<typeof mergedLayout>} places @param {number} row @param {number} at in leaves
 */
export function mergedAt({ leaves }, { x, depth }, row, at) {
  for (let i = 1; i < x.length; i++) {
    if (depth[i] === row && at >= /** @type {number} */ (x[i]) && at < /** @type {number} */ (x[i]) + /** @type {number} */ (leaves[i])) return i;
  }
  return -1;
}

/** Bins from the prompt down to a node. @param {Merged} merged @param {number} node */
export function wayTo({ parent, bin }, node) {
  const way = [];
  for (let i = node; i > 0; i = /** @type {number} */ (parent[i])) way.push(/** @type {number} */ (bin[i]));
  return way.reverse();
}
