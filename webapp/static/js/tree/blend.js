// Means over many nodes at once, for rectangles that stand for more nodes than there are pixels. Pure. Sums of blocks are kept,
// so that a mean over a thousand nodes looks at some forty numbers.
import { nodeAt } from "./layout.js";

const BLOCK = 32;

/** The mean of a signal over neighbours in a row, weighted by their widths. */
export class Blend {
  #tree;
  #values;
  #sums;
  #weights;

  /** @param {Layout} tree @param {ArrayLike<number>} values NaN: no number */
  constructor(tree, values) {
    this.#tree = tree;
    this.#values = values;
    const blocks = Math.ceil(tree.n / BLOCK);
    this.#sums = new Float64Array(blocks);
    this.#weights = new Float64Array(blocks);
    for (let p = 0; p < tree.n; p++) {
      const node = nodeAt(tree, p);
      const value = /** @type {number} */ (values[node]);
      if (Number.isNaN(value)) continue;
      const width = /** @type {number} */ (tree.width[node]);
      const block = (p / BLOCK) | 0;
      this.#sums[block] = /** @type {number} */ (this.#sums[block]) + value * width;
      this.#weights[block] = /** @type {number} */ (this.#weights[block]) + width;
    }
  }

  /**
   * Over the nodes at places `from` to `to`, inclusive, of one row: NaN where more than half of their width has no number, so
   * that what has no credit is not painted over by what has.
   * @param {number} from @param {number} to
   */
  mean(from, to) {
    const tree = this.#tree;
    if (from === to) return /** @type {number} */ (this.#values[nodeAt(tree, from)]);
    let sum = 0;
    let weight = 0;
    const one = (/** @type {number} */ p) => {
      const node = nodeAt(tree, p);
      const value = /** @type {number} */ (this.#values[node]);
      if (Number.isNaN(value)) return;
      const width = /** @type {number} */ (tree.width[node]);
      sum += value * width;
      weight += width;
    };
    let p = from;
    while (p <= to && p % BLOCK) one(p++);
    for (; p + BLOCK - 1 <= to; p += BLOCK) {
      sum += /** @type {number} */ (this.#sums[p / BLOCK]);
      weight += /** @type {number} */ (this.#weights[p / BLOCK]);
    }
    while (p <= to) one(p++);
    const [first, last] = [nodeAt(tree, from), nodeAt(tree, to)];
    const all = /** @type {number} */ (tree.x[last]) + /** @type {number} */ (tree.width[last]) - /** @type {number} */ (tree.x[first]);
    return weight > 0 && weight >= all / 2 ? sum / weight : NaN;
  }
}

/** How often each verdict stands among neighbouring leaves. */
export class Tally {
  #tree;
  #verdict;
  #counts;
  #kinds;

  /** @param {Layout} tree @param {ArrayLike<number>} verdict codes @param {number} kinds how many codes there are */
  constructor(tree, verdict, kinds) {
    this.#tree = tree;
    this.#verdict = verdict;
    this.#kinds = kinds;
    this.#counts = new Uint32Array(Math.ceil(tree.leafOrder.length / BLOCK) * kinds);
    for (let i = 0; i < tree.leafOrder.length; i++) {
      const leaf = /** @type {number} */ (tree.leafOrder[i]);
      const at = ((i / BLOCK) | 0) * kinds + /** @type {number} */ (verdict[leaf]);
      this.#counts[at] = /** @type {number} */ (this.#counts[at]) + /** @type {number} */ (tree.leaves[leaf]);
    }
  }

  /** Answers by verdict among the leaves `from` to `to`, inclusive, counted from the left. @param {number} from @param {number} to */
  between(from, to) {
    const found = new Uint32Array(this.#kinds);
    const one = (/** @type {number} */ i) => {
      const leaf = /** @type {number} */ (this.#tree.leafOrder[i]);
      const code = /** @type {number} */ (this.#verdict[leaf]);
      found[code] = /** @type {number} */ (found[code]) + /** @type {number} */ (this.#tree.leaves[leaf]);
    };
    let i = from;
    while (i <= to && i % BLOCK) one(i++);
    for (; i + BLOCK - 1 <= to; i += BLOCK) {
      for (let code = 0; code < this.#kinds; code++) found[code] = /** @type {number} */ (found[code]) + /** @type {number} */ (this.#counts[(i / BLOCK) * this.#kinds + code]);
    }
    while (i <= to) one(i++);
    return found;
  }
}

/** The worst verdict among neighbours in a row: the largest code. */
export class Worst {
  #tree;
  #verdict;
  #most;

  /** @param {Layout} tree @param {ArrayLike<number>} verdict codes */
  constructor(tree, verdict) {
    this.#tree = tree;
    this.#verdict = verdict;
    this.#most = new Uint8Array(Math.ceil(tree.n / BLOCK));
    for (let p = 0; p < tree.n; p++) {
      const block = (p / BLOCK) | 0;
      this.#most[block] = Math.max(/** @type {number} */ (this.#most[block]), /** @type {number} */ (verdict[nodeAt(tree, p)]));
    }
  }

  /** At places `from` to `to`, inclusive. @param {number} from @param {number} to */
  among(from, to) {
    let worst = 0;
    const one = (/** @type {number} */ p) => { worst = Math.max(worst, /** @type {number} */ (this.#verdict[nodeAt(this.#tree, p)])); };
    let p = from;
    while (p <= to && p % BLOCK) one(p++);
    for (; p + BLOCK - 1 <= to; p += BLOCK) worst = Math.max(worst, /** @type {number} */ (this.#most[p / BLOCK]));
    while (p <= to) one(p++);
    return worst;
  }
}
