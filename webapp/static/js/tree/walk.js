// Names of nodes, and moves from one to another. Pure.
import { placeOf } from "./layout.js";

/** `2.1.3`: the child numbers from the root, counted from 1; the root is `0`. @param {Shape} tree @param {number} node */
export function nameOf(tree, node) {
  const parts = [];
  for (let i = node; i > 0; i = /** @type {number} */ (tree.parent[i])) parts.push(childNumber(tree, i));
  return parts.length ? parts.reverse().join(".") : "0";
}

/** The node of that name, or -1. @param {Shape} tree @param {string} name */
export function nodeNamed(tree, name) {
  if (name === "0") return 0;
  let node = 0;
  for (const part of name.split(".")) {
    const place = Number(part);
    if (!Number.isInteger(place) || place < 1 || place > /** @type {number} */ (tree.nChildren[node])) return -1;
    node = /** @type {number} */ (tree.firstChild[node]) + place - 1;
  }
  return node;
}

/** From 1; 1 for the root. @param {Shape} tree @param {number} node */
export function childNumber(tree, node) {
  return node === 0 ? 1 : node - /** @type {number} */ (tree.firstChild[/** @type {number} */ (tree.parent[node])]) + 1;
}

/** Root to node. @param {Shape} tree @param {number} node */
export function pathTo(tree, node) {
  const path = [node];
  for (let i = node; i > 0; ) path.push((i = /** @type {number} */ (tree.parent[i])));
  return path.reverse();
}

/**
 * Where a key leads, as the tree is drawn; the node itself when there is nothing in that direction.
 * @param {Layout} tree @param {number} node @param {"up" | "down" | "left" | "right" | "first" | "last"} direction
 */
export function move(tree, node, direction) {
  if (direction === "up") return node === 0 ? 0 : /** @type {number} */ (tree.parent[node]);
  if (direction === "down") return /** @type {number} */ (tree.nChildren[node]) ? childAt(tree, node, 0) : node;
  if (node === 0) return 0;
  const parent = /** @type {number} */ (tree.parent[node]);
  const last = /** @type {number} */ (tree.nChildren[parent]) - 1;
  const here = placeOf(tree, node) - placeOf(tree, childAt(tree, parent, 0));
  if (direction === "first") return childAt(tree, parent, 0);
  if (direction === "last") return childAt(tree, parent, last);
  return childAt(tree, parent, direction === "left" ? Math.max(0, here - 1) : Math.min(last, here + 1));
}

/** The child drawn at `index` from the left. @param {Layout} tree @param {number} parent @param {number} index */
function childAt(tree, parent, index) {
  const first = /** @type {number} */ (tree.firstChild[parent]);
  if (!tree.rowNodes || !tree.places) return first + index;
  // Siblings fill the same places whatever their order.
  let place = Infinity;
  for (let i = first; i < first + /** @type {number} */ (tree.nChildren[parent]); i++) place = Math.min(place, /** @type {number} */ (tree.places[i]));
  return /** @type {number} */ (tree.rowNodes[place + index]);
}

/**
 * The next (or previous) leaf from left to right with the same verdict as this one, round the end; from an inner node, the
 * first leaf below it. The node itself if it is the only one.
 * @param {Layout} tree @param {ArrayLike<number>} verdict @param {number} node @param {1 | -1} step
 */
export function nextAlike(tree, verdict, node, step) {
  let leaf = node;
  while (/** @type {number} */ (tree.nChildren[leaf])) leaf = childAt(tree, leaf, 0);
  if (leaf !== node) return leaf;
  const total = tree.leafOrder.length;
  const here = tree.leafOrder.indexOf(node);
  for (let i = 1; i < total; i++) {
    const other = /** @type {number} */ (tree.leafOrder[(((here + i * step) % total) + total) % total]);
    if (verdict[other] === verdict[node]) return other;
  }
  return node;
}

/**
 * The rows of an outline: nodes in reading order (depth first), below closed nodes nothing.
 * @param {Shape} tree @param {ReadonlySet<number>} closed @returns {Int32Array}
 */
export function outlineRows(tree, closed) {
  const rows = new Int32Array(tree.n);
  const stack = [0];
  let count = 0;
  while (stack.length) {
    const node = /** @type {number} */ (stack.pop());
    rows[count++] = node;
    if (closed.has(node)) continue;
    const first = /** @type {number} */ (tree.firstChild[node]);
    for (let i = first + /** @type {number} */ (tree.nChildren[node]) - 1; i >= first && first >= 0; i--) stack.push(i);
  }
  return rows.subarray(0, count);
}

/** Answers with this verdict at or below each node, in one pass. @param {Layout} tree @param {ArrayLike<number>} verdict @param {number} code */
export function countBelow(tree, verdict, code) {
  const counts = new Int32Array(tree.n);
  for (let i = tree.n - 1; i >= 0; i--) {
    if (/** @type {number} */ (tree.nChildren[i]) === 0 && verdict[i] === code) counts[i] = /** @type {number} */ (tree.leaves[i]);
    if (i > 0) {
      const up = /** @type {number} */ (tree.parent[i]);
      counts[up] = /** @type {number} */ (counts[up]) + /** @type {number} */ (counts[i]);
    }
  }
  return counts;
}
