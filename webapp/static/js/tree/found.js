// The nodes that a search in the tree found, as the pictures need them. Pure.
import { placeOf } from "./layout.js";

export class Found {
  #places;
  #nodes;
  /** In reading order: depth first, as the outline shows them. */ inOrder;

  /** @param {Layout} tree @param {ArrayLike<number>} nodes @param {number} total how many there are, if more */
  constructor(tree, nodes, total) {
    this.total = total;
    this.#nodes = new Set(Array.from(nodes));
    this.#places = Int32Array.from(nodes, (node) => placeOf(tree, node)).sort();
    const left = (/** @type {number} */ node) => /** @type {number} */ (tree.x[node]);
    this.inOrder = [...this.#nodes].sort((a, b) => left(a) - left(b) || /** @type {number} */ (tree.depth[a]) - /** @type {number} */ (tree.depth[b]));
  }

  /** The same nodes in another layout. @param {Layout} tree */
  in(tree) {
    return new Found(tree, [...this.#nodes], this.total);
  }

  /** @param {number} node */
  has(node) {
    return this.#nodes.has(node);
  }

  /** Whether one stands at places `from` to `to`, inclusive. @param {number} from @param {number} to */
  any(from, to) {
    let low = 0;
    let high = this.#places.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (/** @type {number} */ (this.#places[middle]) >= from) high = middle;
      else low = middle + 1;
    }
    return low < this.#places.length && /** @type {number} */ (this.#places[low]) <= to;
  }

  /** The next (1) or previous (-1) one from a node on, round the end; -1 when nothing was found. @param {number} node @param {1 | -1} step */
  next(node, step) {
    const all = this.inOrder;
    if (!all.length) return -1;
    const here = all.indexOf(node);
    return /** @type {number} */ (all[here < 0 ? (step > 0 ? 0 : all.length - 1) : (here + step + all.length) % all.length]);
  }
}
