// Moving from one path to another. Pure.
import { childNumber, nodeNamed, pathTo } from "./walk.js";

/**
 * The path to `node` with a sibling of one of its parts put in: the node that the same child numbers lead to from there, as far
 * as there are such children.
 * @param {Layout} tree @param {number} node @param {string} sibling its name @returns {number}
 */
export function swapped(tree, node, sibling) {
  let at = nodeNamed(tree, sibling);
  if (at < 0) return node;
  const depth = sibling.split(".").length;
  for (const below of pathTo(tree, node).slice(depth + 1)) {
    const place = childNumber(tree, below);
    if (place > /** @type {number} */ (tree.nChildren[at])) break;
    at = /** @type {number} */ (tree.firstChild[at]) + place - 1;
  }
  return at;
}

/** The sibling beside part `depth` of the path to `node`, or -1. @param {Layout} tree @param {number} node @param {number} depth @param {1 | -1} step */
export function besideAt(tree, node, depth, step) {
  const part = pathTo(tree, node)[depth];
  if (!part) return -1;
  const parent = /** @type {number} */ (tree.parent[part]);
  const first = /** @type {number} */ (tree.firstChild[parent]);
  const next = part + step;
  return next >= first && next < first + /** @type {number} */ (tree.nChildren[parent]) ? next : -1;
}
