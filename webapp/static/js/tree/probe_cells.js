// Continuations that were sampled by hand, one by one, and where they lie in the lane below an icicle. Pure.

const WIDEST = 22;
const NARROWEST = 6;
export const FOLDED = 34;
const GAP = 6;

/** By the letter that stands for it. @type {Record<string, string>} */
const VERDICTS = { c: "correct", i: "incorrect", u: "unparsed", t: "truncated", e: "error", n: "none", ".": "" };

/**
 * One thing to draw. `id` names a continuation, `12.3`: number 3 of probe 12; "" where it is not there yet, or where the box
 * stands for all of a node (`count` then).
 * @typedef {{node: number, id: string, verdict: string, count: number}} Cell
 */

/** The continuations of a node's probes, in the order they were asked for; those to come last. @param {readonly DrawnProbe[]} probes @param {number} node @returns {Cell[]} */
export function cellsOf(probes, node) {
  return probes.flatMap(({ id, verdicts, pending }) =>
    [...verdicts, ...".".repeat(pending)].map((letter, number) => ({ node, id: letter === "." ? "" : `${id}.${number}`, verdict: VERDICTS[letter] ?? "", count: 1 })),
  );
}

/**
 * Where the boxes of the lane lie: each group begins below its node where there is room, and none covers another. When not all fit,
 * groups fold to one box, the selected node's last; what still does not fit is one box at the end. Pure.
 * @param {ReadonlyMap<number, readonly DrawnProbe[]>} probed @param {number} selected
 * @param {(node: number) => [number, number]} edges pixels @param {number} width pixels
 * @returns {(Cell & {left: number, width: number})[]}
 */
export function laneBoxes(probed, selected, edges, width) {
  const groups = [...probed]
    .map(([node, probes]) => ({ node, cells: cellsOf(probes, node), at: edges(node) }))
    .filter(({ at: [left, right] }) => right >= 0 && left <= width)
    .sort((a, b) => a.at[0] - b.at[0] || a.node - b.node);
  const all = groups.reduce((sum, { cells }) => sum + cells.length * WIDEST + GAP, 0);
  const folds = (/** @type {number} */ node) => all > width && node !== selected;
  const most = Math.max(1, Math.floor((width - (groups.some(({ node }) => node !== selected) ? 2 * (FOLDED + GAP) : 0)) / NARROWEST));
  const sized = groups.map(({ node, cells, at }) => {
    if (folds(node)) return { at, boxes: [{ node, id: "", verdict: "", count: cells.length, width: FOLDED }] };
    // The newest, if there are more than pixels.
    const shown = cells.slice(-most);
    const size = Math.max(NARROWEST, Math.min(WIDEST, Math.floor((width - (all > width ? (groups.length - 1) * (FOLDED + GAP) : 0)) / shown.length)));
    const boxes = shown.map((cell) => ({ ...cell, width: size }));
    return { at, boxes };
  });
  const span = (/** @type {{width: number}[]} */ boxes) => boxes.reduce((sum, box) => sum + box.width, 0);
  let room = width - sized.reduce((sum, { boxes }) => sum + span(boxes) + GAP, -GAP);
  while (room < 0 && sized.length > 1) {
    // One box at the end for what has no room; never the selected node's.
    const last = sized.findLastIndex(({ boxes }) => boxes[0]?.node !== selected);
    const other = sized.findLastIndex(({ boxes }, i) => i < last && boxes[0]?.node !== selected);
    if (last < 0 || other < 0) break;
    const [into, gone] = [/** @type {typeof sized[number]} */ (sized[last]), /** @type {typeof sized[number]} */ (sized[other])];
    const box = /** @type {typeof into.boxes[number]} */ (into.boxes[0]);
    box.count += gone.boxes.reduce((sum, { count }) => sum + count, 0);
    room += span(gone.boxes) + GAP;
    sized.splice(other, 1);
  }
  /** @type {number[]} */
  const lefts = [];
  let free = 0;
  for (const { at, boxes } of sized) {
    lefts.push(Math.max(free, at[0]));
    free = /** @type {number} */ (lefts.at(-1)) + span(boxes) + GAP;
  }
  free = width;
  for (let i = sized.length - 1; i >= 0; i--) {
    const size = span(/** @type {typeof sized[number]} */ (sized[i]).boxes);
    lefts[i] = Math.max(0, Math.min(/** @type {number} */ (lefts[i]), free - size));
    free = /** @type {number} */ (lefts[i]) - GAP;
  }
  return sized.flatMap(({ boxes }, i) => {
    let left = /** @type {number} */ (lefts[i]);
    return boxes.map((box) => {
      const placed = { ...box, left };
      left += box.width;
      return placed;
    });
  });
}
