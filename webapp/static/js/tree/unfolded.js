// Which part of a tree the graph shows, and where: subtrees are folded into bars so that no more than a budget of nodes is
// visible, and a node with very many children shows a window of them. Pure.
import { hierarchy, tree as tidy } from "../../vendor/d3.js";
import { nodeAt, placeOf } from "./layout.js";
import { cellsOf } from "./probe_cells.js";
import { pathTo } from "./walk.js";

/** Visible at most; laying out as many takes some tens of milliseconds. */
export const BUDGET = 3000;
/** Opened before anyone asked: about what fits a window and can be read. */
export const OPEN_AT_FIRST = 60;
/** Continuations that were sampled by hand from one node, shown at a time. */
export const MOST_PROBES = 16;
/** Children of one node shown at a time. */
export const MOST_CHILDREN = 100;
export const ROW = 22;
export const COLUMN = 168;

/**
 * One thing that is drawn: a node, a bar in place of further siblings, or a probe, which is no node of the tree.
 * @typedef {object} Item
 * @property {"node" | "bar" | "more" | "probe"} kind bar: the subtree of `node` is folded; more: siblings that are not shown
 * @property {number} node of `more`, the first of them; of a probe, where it starts
 * @property {{id: string, verdict: string, earlier: number}} [probe] as in `Cell`; `earlier`: continuations that are not drawn
 * @property {number} count nodes it stands for side by side; 1 unless `more`
 * @property {number} leaves answers below
 * @property {number} x along the depth, pixels @property {number} y across
 * @property {Item | null} parent
 * @property {Item[]} children
 */

export class Unfolded {
  #tree;
  #budget;
  /** Open nodes, the one opened last at the end. @type {Set<number>} */ #open = new Set();
  /** Where the window of shown children begins, by parent. @type {Map<number, number>} */ #from = new Map();
  #selected = 0;
  /** @type {ReadonlyMap<number, readonly DrawnProbe[]>} */ #probed = new Map();
  #drawn = "";

  /** @param {Layout} tree @param {number} [budget] @param {number} [atFirst] */
  constructor(tree, budget = BUDGET, atFirst = OPEN_AT_FIRST) {
    this.#tree = tree;
    this.#budget = budget;
    let visible = 1;
    for (let place = 0; place < tree.n; place++) {
      const node = nodeAt(tree, place);
      const parent = /** @type {number} */ (tree.parent[node]);
      if (parent >= 0 && !this.#open.has(parent)) continue;
      const more = this.#shown(node);
      if (!more || (visible + more > atFirst && visible > 1)) continue;
      this.#open.add(node);
      visible += more;
      if (visible >= atFirst) break;
    }
  }

  /** @param {ReadonlyMap<number, readonly DrawnProbe[]>} probed @returns {boolean} there is something else to draw */
  hang(probed) {
    this.#probed = probed;
    const drawn = JSON.stringify([...probed]);
    const changed = drawn !== this.#drawn;
    this.#drawn = drawn;
    return changed;
  }

  /** How many things stand for the children of an open node. @param {number} node */
  #shown(node) {
    const count = /** @type {number} */ (this.#tree.nChildren[node]);
    return Math.min(count, MOST_CHILDREN + 2);
  }

  /** @param {number} node */
  isOpen(node) {
    return this.#open.has(node);
  }

  /** @param {number} node */
  open(node) {
    if (!this.#tree.nChildren[node]) return;
    this.#open.delete(node);
    this.#open.add(node);
    this.#keepBudget();
  }

  /** @param {number} node */
  close(node) {
    this.#open.delete(node);
  }

  /** Show the siblings from `first` on. @param {number} first */
  showFrom(first) {
    const parent = /** @type {number} */ (this.#tree.parent[first]);
    const begin = this.#beginOf(parent);
    this.#from.set(parent, Math.max(0, placeOf(this.#tree, first) - begin));
  }

  /** @param {number} parent the place of its first child */
  #beginOf(parent) {
    let place = Infinity;
    const first = /** @type {number} */ (this.#tree.firstChild[parent]);
    if (!this.#tree.places) return first;
    for (let i = first; i < first + /** @type {number} */ (this.#tree.nChildren[parent]); i++) place = Math.min(place, placeOf(this.#tree, i));
    return place;
  }

  /** Everything above a node is opened, and it stands in the window of its siblings. @param {number} node @returns {boolean} something changed */
  reveal(node) {
    this.#selected = node;
    let changed = false;
    const path = pathTo(this.#tree, node);
    for (let i = 0; i < path.length - 1; i++) {
      const [parent, child] = [/** @type {number} */ (path[i]), /** @type {number} */ (path[i + 1])];
      if (!this.#open.has(parent)) {
        this.#open.add(parent);
        changed = true;
      }
      const at = placeOf(this.#tree, child) - this.#beginOf(parent);
      const from = this.#from.get(parent) ?? 0;
      if (at < from || at >= from + MOST_CHILDREN) {
        this.#from.set(parent, Math.max(0, at - MOST_CHILDREN / 2));
        changed = true;
      }
    }
    if (changed) this.#keepBudget();
    return changed;
  }

  /** Too much is open: what was opened first is folded, but for the way to the selected node. */
  #keepBudget() {
    const kept = new Set(pathTo(this.#tree, this.#selected));
    const newest = [...this.#open].at(-1);
    if (newest !== undefined) for (const node of pathTo(this.#tree, newest)) kept.add(node);
    for (const node of [...this.#open].sort((a, b) => /** @type {number} */ (this.#tree.depth[b]) - /** @type {number} */ (this.#tree.depth[a]))) {
      if (this.#visible() <= this.#budget) return;
      if (!kept.has(node)) this.#open.delete(node);
    }
  }

  #visible() {
    let visible = 1;
    for (const node of this.#open) if (pathTo(this.#tree, node).slice(0, -1).every((above) => this.#open.has(above))) visible += this.#shown(node);
    return visible;
  }

  /** Everything that is visible, laid out; the root first. @returns {Item[]} */
  items() {
    const top = this.#item(0, null);
    const stack = [top];
    while (stack.length) {
      const item = /** @type {Item} */ (stack.pop());
      if (item.kind === "node") item.children = this.#children(item);
      stack.push(...item.children);
    }
    const root = hierarchy(top, (item) => item.children);
    // Leaves of different parents stand a little apart, as brackets would show them; what has a number above it needs its room.
    /** @type {import("../../vendor/d3.js").TreeLayout<Item>} */ (tidy()).nodeSize([ROW, COLUMN]).separation((a, b) => (a.parent !== b.parent || a.children || b.children ? 1.4 : 1))(root);
    /** @type {Item[]} */
    const items = [];
    root.each(({ data, x, y }) => {
      data.x = y;
      data.y = x;
      items.push(data);
    });
    return items;
  }

  /** @param {number} node @param {Item | null} parent @returns {Item} */
  #item(node, parent) {
    const folded = this.#tree.nChildren[node] && !this.#open.has(node);
    return { kind: folded ? "bar" : "node", node, count: 1, leaves: /** @type {number} */ (this.#tree.leaves[node]), x: 0, y: 0, parent, children: [] };
  }

  /** @param {Item} item */
  #children(item) {
    const probes = cellsOf(this.#probed.get(item.node) ?? [], item.node);
    /** @type {Item[]} */
    const newest = probes.slice(-MOST_PROBES).map(({ id, verdict }, i) => ({
      kind: "probe", node: item.node, count: 1, leaves: 0, x: 0, y: 0, parent: item, children: [],
      probe: { id, verdict, earlier: i === 0 ? Math.max(0, probes.length - MOST_PROBES) : 0 },
    }));
    return [...this.#ownChildren(item), ...newest];
  }

  /** @param {Item} item */
  #ownChildren(item) {
    const count = /** @type {number} */ (this.#tree.nChildren[item.node]);
    if (!count) return [];
    const begin = this.#beginOf(item.node);
    const from = count <= MOST_CHILDREN + 2 ? 0 : Math.min(this.#from.get(item.node) ?? 0, count - MOST_CHILDREN);
    const to = count <= MOST_CHILDREN + 2 ? count : from + MOST_CHILDREN;
    const shown = Array.from({ length: to - from }, (_, i) => this.#item(nodeAt(this.#tree, begin + from + i), item));
    if (from > 0) shown.unshift(this.#more(begin + Math.max(0, from - MOST_CHILDREN), begin, begin + from, item));
    if (to < count) shown.push(this.#more(begin + to, begin + to, begin + count, item));
    return shown;
  }

  /** @param {number} goTo place that is shown first after a click @param {number} from places @param {number} to @param {Item} parent @returns {Item} */
  #more(goTo, from, to, parent) {
    let leaves = 0;
    for (let place = from; place < to; place++) leaves += /** @type {number} */ (this.#tree.leaves[nodeAt(this.#tree, place)]);
    return { kind: "more", node: nodeAt(this.#tree, goTo), count: to - from, leaves, x: 0, y: 0, parent, children: [] };
  }
}
