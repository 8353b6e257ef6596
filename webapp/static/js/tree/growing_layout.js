// Where the nodes of a tree stand while it grows. Room is kept for what the sampler plans, so that no node moves. Pure.

/** As `trainer.tree.Verdict` numbers them. */
const CORRECT = 1;

/**
 * @typedef {object} GrowingTree breadth-first; tokens 0: a segment that is being written
 * @property {string} problem_id @property {number[]} parent @property {number[]} tokens @property {number[]} finish @property {number[]} [verdict] 0: not judged; empty until its answers are
 * @typedef {object} GrowingBox left and width as shares of the whole, depth from 1
 * @property {number} node @property {number} depth @property {number} left @property {number} width @property {boolean} isWritten
 */

/**
 * Each node's children share its width: as many places as the sampler plans at that depth, or as there are.
 * @param {GrowingTree} tree @param {number[]} branching planned children per depth; empty: not planned
 * @returns {{boxes: GrowingBox[], depth: number}}
 */
export function growingBoxes({ parent, tokens, finish }, branching) {
  const children = new Uint32Array(parent.length);
  for (const above of parent.slice(1)) children[above] = /** @type {number} */ (children[above]) + 1;
  const seen = new Uint32Array(parent.length);
  /** @type {GrowingBox[]} */
  const all = [{ node: 0, depth: 0, left: 0, width: 1, isWritten: true }];
  let depth = branching.length;
  for (let node = 1; node < parent.length; node++) {
    const above = /** @type {GrowingBox} */ (all[/** @type {number} */ (parent[node])]);
    const places = Math.max(branching[above.depth] ?? 0, /** @type {number} */ (children[above.node]));
    const width = above.width / places;
    const number = /** @type {number} */ (seen[above.node]);
    seen[above.node] = number + 1;
    all.push({ node, depth: above.depth + 1, left: above.left + number * width, width, isWritten: /** @type {number} */ (finish[node]) > 0 || /** @type {number} */ (tokens[node]) > 0 });
    depth = Math.max(depth, above.depth + 1);
  }
  return { boxes: all.slice(1), depth };
}

/**
 * Answers that were judged so far at or below each node, and how many of them are correct.
 * @param {GrowingTree} tree @returns {{judged: Uint32Array, correct: Uint32Array}}
 */
export function judgedSoFar({ parent, verdict = [] }) {
  const judged = Uint32Array.from(parent, (_, node) => (verdict[node] ? 1 : 0));
  const correct = Uint32Array.from(parent, (_, node) => (verdict[node] === CORRECT ? 1 : 0));
  for (let node = parent.length - 1; node > 0; node--) {
    const above = /** @type {number} */ (parent[node]);
    judged[above] = /** @type {number} */ (judged[above]) + /** @type {number} */ (judged[node]);
    correct[above] = /** @type {number} */ (correct[above]) + /** @type {number} */ (correct[node]);
  }
  return { judged, correct };
}

/** "12 segments, 5 being written, 341 tokens so far, 3/4 ✓ so far". @param {GrowingTree} tree */
export function growingWords(tree) {
  const { parent, tokens, finish } = tree;
  const { judged, correct } = judgedSoFar(tree);
  const written = finish.filter((reason) => reason > 0).length;
  const waiting = parent.length - 1 - written;
  const sum = tokens.reduce((total, count) => total + count, 0);
  const parts = [`${written} segment${written === 1 ? "" : "s"}`, ...(waiting ? [`${waiting} being written`] : []), `${sum.toLocaleString("en")} tokens so far`, ...(judged[0] ? [`${correct[0]}/${judged[0]} ✓ so far`] : [])];
  return parts.join(" · ");
}
