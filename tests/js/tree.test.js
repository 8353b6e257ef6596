import assert from "node:assert/strict";
import test from "node:test";

import { decodeColumns, halfFloat } from "../../webapp/static/js/tree/columns.js";
import { advantageWords, look, lookOf, signalOf, spoken, times, visitWords, withoutCredit } from "../../webapp/static/js/tree/signals.js";
import { hit } from "../../webapp/static/js/tree/hit.js";
import { firstRightOf, layout, nodeAt, place, placeOf, shapeOf, visibleBoxes } from "../../webapp/static/js/tree/layout.js";
import { around, bringIn, fit, transformOf, viewOf } from "../../webapp/static/js/tree/viewport.js";
import { childNumber, countBelow, move, nameOf, nextAlike, nodeNamed, outlineRows, pathTo } from "../../webapp/static/js/tree/walk.js";
import { randomParents, seeded } from "./random.js";

//        0
//    1       2
//  3 4 5    6           7 is a child of 4
//    7
const SMALL = [-1, 0, 0, 1, 1, 1, 2, 4];

/** The slow obvious layout: recursion over lists of children. */
function slowLayout(parent) {
  const children = parent.map((_, node) => parent.flatMap((up, i) => (up === node ? [i] : [])));
  const places = [];
  const place = (node, x, depth) => {
    let width = 0;
    for (const child of children[node]) width += place(child, x + width, depth + 1);
    places[node] = { x, depth, leaves: width || 1, children: children[node] };
    return width || 1;
  };
  place(0, 0, 0);
  return places;
}

test("a tree worked by hand", () => {
  const tree = layout(SMALL);
  assert.deepEqual([...tree.leaves], [4, 3, 1, 1, 1, 1, 1, 1]);
  assert.deepEqual([...tree.x], [0, 0, 3, 0, 1, 2, 3, 1]);
  assert.deepEqual([...tree.depth], [0, 1, 1, 2, 2, 2, 2, 3]);
  assert.deepEqual([...tree.rowStart], [0, 1, 3, 7, 8]);
  assert.deepEqual([...tree.leafOrder], [3, 7, 5, 6]);
  assert.equal(tree.maxDepth, 3);
});

test("the two passes agree with the recursive layout", () => {
  for (let seed = 1; seed <= 200; seed++) {
    const parent = randomParents(seeded(seed), 1 + (seed % 90));
    const fast = layout(parent);
    const slow = slowLayout(parent);
    slow.forEach((place, node) => {
      assert.equal(fast.x[node], place.x, `x of ${node}, seed ${seed}`);
      assert.equal(fast.leaves[node], place.leaves, `leaves of ${node}, seed ${seed}`);
      assert.equal(fast.depth[node], place.depth);
      assert.deepEqual(place.children, Array.from({ length: fast.nChildren[node] }, (_, i) => fast.firstChild[node] + i));
      if (!place.children.length) assert.equal(fast.leafOrder[place.x], node);
    });
  }
});

test("a root alone is one leaf", () => {
  const tree = layout([-1]);
  assert.deepEqual([...tree.leafOrder], [0]);
  assert.deepEqual([...tree.rowStart], [0, 1]);
});

test("a hundred thousand nodes are laid out at once, not in a stack of calls", () => {
  const parent = [-1];
  for (let i = 1; i < 100_000; i++) parent.push((i - 1) >> 2);
  const started = performance.now();
  const tree = layout(parent);
  assert.ok(performance.now() - started < 500, "laying out 100,000 nodes took over half a second");
  assert.equal(tree.leaves[0], tree.leafOrder.length);
  const chain = layout(Array.from({ length: 50_000 }, (_, i) => i - 1));
  assert.equal(chain.maxDepth, 49_999);
});

test("binary search in a row is the same as looking through it", () => {
  for (let seed = 1; seed <= 60; seed++) {
    const random = seeded(seed);
    const tree = layout(randomParents(random, 60));
    for (let row = 0; row <= tree.maxDepth; row++) {
      const x = random.next() * (tree.leaves[0] + 2) - 1;
      let slow = tree.rowStart[row];
      while (slow < tree.rowStart[row + 1] && tree.x[slow] + tree.leaves[slow] <= x) slow++;
      assert.equal(firstRightOf(tree, row, x), slow);
    }
  }
});

test("what is hit is what is drawn there", () => {
  const [width, rowHeight] = [640, 26];
  for (let seed = 1; seed <= 100; seed++) {
    const random = seeded(seed);
    const tree = layout(randomParents(random, 120));
    const total = tree.leaves[0];
    const x0 = random.next() * total * 0.5;
    const view = { x0, x1: x0 + Math.max(0.5, random.next() * (total - x0)) };
    for (let tries = 0; tries < 30; tries++) {
      const [px, py] = [random.next() * width, random.next() * rowHeight * (tree.maxDepth + 1)];
      const x = view.x0 + (px / width) * (view.x1 - view.x0);
      const row = Math.floor(py / rowHeight);
      const slow = [...tree.depth.keys()].find((i) => tree.depth[i] === row && tree.x[i] <= x && x < tree.x[i] + tree.leaves[i]) ?? -1;
      assert.equal(hit(tree, view, width, rowHeight, px, py), slow);
    }
  }
  const tree = layout(SMALL);
  assert.equal(hit(tree, fit(tree), 400, 26, 150, 26 * 4 + 5), 7); // the row of outcomes: the second leaf
  assert.equal(hit(tree, fit(tree), 400, 26, -1, 5), -1);
});

test("the rectangles of a row cover exactly its nodes in the view, none thinner than a pixel", () => {
  for (let seed = 1; seed <= 80; seed++) {
    const random = seeded(seed);
    const tree = layout(randomParents(random, 400));
    const view = seed % 2 ? fit(tree) : { x0: tree.leaves[0] * 0.2, x1: tree.leaves[0] * 0.7 };
    const width = 20 + random.below(100);
    for (let row = 0; row <= tree.maxDepth; row++) {
      const boxes = visibleBoxes(tree, row, view, width);
      const covered = boxes.flatMap((box) => Array.from({ length: box.to - box.from + 1 }, (_, i) => box.from + i));
      const inView = [...tree.depth.keys()].filter((i) => tree.depth[i] === row && tree.x[i] + tree.leaves[i] > view.x0 && tree.x[i] < view.x1);
      assert.deepEqual(covered, inView);
      assert.ok(boxes.length <= width + 2, `${boxes.length} rectangles on ${width} pixels`);
    }
  }
});

test("views: a subtree edge to edge, and d3's transform there and back", () => {
  const tree = layout(SMALL);
  assert.deepEqual(fit(tree), { x0: 0, x1: 4 });
  assert.deepEqual(around(tree, 1), { x0: 0, x1: 3 });
  const view = { x0: 1, x1: 2 };
  const transform = transformOf(view, 800, 4);
  assert.deepEqual(transform, { k: 4, x: -800 });
  assert.deepEqual(viewOf(transform, 800, 4), view);
  assert.deepEqual(viewOf({ k: 1, x: 0 }, 800, 4), fit(tree));
});

test("bringing a node in moves the window as little as possible and never out of the tree", () => {
  const tree = layout(SMALL);
  const view = { x0: 0, x1: 2 };
  assert.equal(bringIn(tree, view, 3), view);
  assert.deepEqual(bringIn(tree, view, 6), { x0: 2, x1: 4 });
  assert.equal(bringIn(tree, view, 1), view);
  assert.deepEqual(bringIn(tree, { x0: 3, x1: 4 }, 0), { x0: 1.5, x1: 2.5 });
});

test("names lead to their nodes and back", () => {
  const tree = layout(SMALL);
  assert.deepEqual(SMALL.map((_, node) => nameOf(tree, node)), ["0", "1", "2", "1.1", "1.2", "1.3", "2.1", "1.2.1"]);
  for (let node = 0; node < tree.n; node++) assert.equal(nodeNamed(tree, nameOf(tree, node)), node);
  for (const bad of ["3", "1.4", "1.0", "x", "1.1.1", "", "-1", "1..2"]) assert.equal(nodeNamed(tree, bad), -1, bad);
  assert.deepEqual(pathTo(tree, 7), [0, 1, 4, 7]);
  assert.equal(childNumber(tree, 5), 3);
});

test("keys move among family and stop at its edges", () => {
  const tree = layout(SMALL);
  assert.equal(move(tree, 4, "up"), 1);
  assert.equal(move(tree, 0, "up"), 0);
  assert.equal(move(tree, 1, "down"), 3);
  assert.equal(move(tree, 7, "down"), 7);
  assert.equal(move(tree, 3, "left"), 3);
  assert.equal(move(tree, 3, "right"), 4);
  assert.equal(move(tree, 5, "right"), 5); // 6 is next to it but a cousin
  assert.equal(move(tree, 4, "first"), 3);
  assert.equal(move(tree, 4, "last"), 5);
});

test("the next leaf of the same verdict, round the end", () => {
  const tree = layout(SMALL); // leaves from left to right: 3 7 5 6
  const verdict = [0, 0, 0, 1, 0, 2, 1, 2];
  assert.equal(nextAlike(tree, verdict, 3, 1), 6);
  assert.equal(nextAlike(tree, verdict, 6, 1), 3);
  assert.equal(nextAlike(tree, verdict, 7, -1), 5);
  assert.equal(nextAlike(tree, verdict, 1, 1), 3);
  assert.equal(nextAlike(tree, [0, 0, 0, 1, 0, 2, 2, 2], 3, 1), 3);
});

test("outline rows read depth first and hide what is closed", () => {
  const tree = layout(SMALL);
  assert.deepEqual([...outlineRows(tree, new Set())], [0, 1, 3, 4, 7, 5, 2, 6]);
  assert.deepEqual([...outlineRows(tree, new Set([1]))], [0, 1, 2, 6]);
});

test("correct leaves below each node", () => {
  assert.deepEqual([...countBelow(layout(SMALL), [1, 0, 0, 1, 1, 2, 1, 1], 1)], [3, 2, 1, 1, 1, 0, 1, 1]);
});

/** The binary form, written by hand as the contract has it. */
function binary(children, changes = {}) {
  const n = children.length;
  const kinds = { n_children: "uint16", tokens: "uint8", value: "float32", advantage: "float32", entropy: "float16", logprob: "float16", verdict: "uint8", finish: "uint8", credit_state: "uint8" };
  const size = { uint16: 2, float32: 4, float16: 2, uint8: 1 };
  let offset = 0;
  const columns = Object.entries(kinds).map(([name, dtype]) => {
    const column = { name, dtype, offset, length: n };
    offset += Math.ceil((n * size[dtype]) / 4) * 4;
    return column;
  });
  let header = JSON.stringify({ n_nodes: n, columns, labels: { verdict: ["none", "correct"], finish: ["none"], credit_state: ["none"] }, names_from: "n_children", policy_version: 7, ...changes });
  header += " ".repeat((4 - (header.length % 4)) % 4);
  const buffer = new ArrayBuffer(4 + header.length + offset);
  const view = new DataView(buffer);
  view.setUint32(0, header.length, true);
  new Uint8Array(buffer, 4).set(new TextEncoder().encode(header));
  const start = (wanted) => 4 + header.length + columns.find(({ name }) => name === wanted).offset;
  children.forEach((count, i) => view.setUint16(start("n_children") + 2 * i, count, true));
  children.forEach((_, i) => view.setFloat32(start("advantage") + 4 * i, i % 2 ? NaN : i / 4, true));
  children.forEach((_, i) => view.setUint16(start("entropy") + 2 * i, 0x3800, true));
  return buffer;
}

const SMALL_CHILDREN = [2, 3, 1, 0, 1, 0, 0, 0];

test("columns come out as they went in", () => {
  const columns = decodeColumns(binary(SMALL_CHILDREN));
  assert.equal(columns.n, 8);
  assert.deepEqual([...columns.n_children], SMALL_CHILDREN);
  assert.deepEqual([...columns.advantage], [0, NaN, 0.5, NaN, 1, NaN, 1.5, NaN]);
  assert.deepEqual([...columns.entropy], Array(8).fill(0.5));
  assert.equal(columns.entropy, columns.entropy, "unpacked once");
  assert.deepEqual([columns.copies, columns.visits, columns.mismatch, columns.policyVersion, columns.cliff], [null, null, null, 7, null]);
  assert.equal(columns.verdict.length, 8);
  assert.deepEqual(columns.labels.verdict, ["none", "correct"]);
});

test("columns that do not fit together are refused with a reason", () => {
  assert.throws(() => decodeColumns(new ArrayBuffer(2)), /2 bytes/);
  assert.throws(() => decodeColumns(binary(SMALL_CHILDREN).slice(0, -4)), /ends after/);
  assert.throws(() => decodeColumns(binary(SMALL_CHILDREN, { columns: [] })), /Column n_children is missing/);
  assert.throws(() => decodeColumns(binary([2, 0, 0, 0])), /Node 3 is nobody's child/);
  assert.throws(() => decodeColumns(binary([0, 1])), /Node 1 is nobody's child/);
  assert.throws(() => decodeColumns(binary([3, 0, 0])), /tell of 4 nodes; the tree has 3/);
});

test("half floats are the numbers that numpy packs", () => {
  // numpy.array([1, -2, 0.1, 65504, 2**-24, 6e-5], "<f2").view("<u2"), and the numbers it reads back
  const packed = [15360, 49152, 11878, 31743, 1, 1007];
  const numbers = [1, -2, 0.0999755859375, 65504, 2 ** -24, 1007 * 2 ** -24];
  assert.deepEqual(packed.map(halfFloat), numbers);
  assert.ok(Number.isNaN(halfFloat(0x7e00)) && halfFloat(0xfc00) === -Infinity && Object.is(halfFloat(0x8000), -0));
});

test("the shape is told by the counts of children", () => {
  for (let seed = 1; seed <= 60; seed++) {
    const parent = randomParents(seeded(seed), 1 + seed);
    const children = parent.map((_, node) => parent.filter((up) => up === node).length);
    const [shape, tree] = [shapeOf(Uint8Array.from(children)), layout(parent)];
    for (const column of ["parent", "firstChild", "depth", "rowStart"]) assert.deepEqual([...shape[column]], [...tree[column]], column);
  }
});

test("widths by tokens and by weight in the loss count a node's own part, right of its children", () => {
  const shape = layout(SMALL);
  const tokens = [9, 4, 6, 1, 2, 3, 5, 7];
  const byTokens = place(shape, { width: "tokens", tokens });
  assert.deepEqual([...byTokens.width], [28, 17, 11, 1, 9, 3, 5, 7]);
  assert.deepEqual([...byTokens.x], [0, 0, 17, 0, 1, 10, 17, 1]);
  const advantage = [NaN, 0.5, -1, 2, NaN, -1, 1, 0];
  const byLoss = place(shape, { width: "loss", tokens, advantage });
  assert.deepEqual([...byLoss.width], [18, 7, 11, 2, 0, 3, 5, 0]);
  // Under a credit per answer an inner segment trains with the sum over its answers: 1 has answers 3, 7 and 5.
  const perPath = place(shape, { width: "loss", tokens, advantage: [NaN, NaN, NaN, 2, NaN, -1, -3, 1], isPerPath: (node) => [1, 2, 4].includes(node) });
  assert.deepEqual([...perPath.width], [8 + 2 + 9 + 3 + 18 + 15, 8 + 2 + 9 + 3, 18 + 15, 2, 2 + 7, 3, 15, 7]);
  const equal = place(shape, { width: "equal" });
  assert.deepEqual([equal.width[1], equal.width[5], equal.x[6]], [1 / 2, 1 / 6, 1 / 2]);
});

test("in order of value rows stay whole, and every way of looking agrees", () => {
  for (let seed = 1; seed <= 60; seed++) {
    const random = seeded(seed);
    const shape = layout(randomParents(random, 1 + random.below(120)));
    const by = Float32Array.from({ length: shape.n }, () => (random.next() < 0.2 ? NaN : Math.round(random.next() * 4) / 4));
    const tree = place(shape, { by, width: seed % 2 ? "leaves" : "equal" }, shape);
    for (let row = 0; row <= tree.maxDepth; row++) {
      for (let p = tree.rowStart[row]; p < tree.rowStart[row + 1]; p++) {
        const node = nodeAt(tree, p);
        assert.equal(tree.depth[node], row);
        assert.equal(placeOf(tree, node), p);
        if (p === tree.rowStart[row]) continue;
        const before = nodeAt(tree, p - 1);
        assert.ok(tree.x[before] + tree.width[before] <= tree.x[node] + 1e-9);
        if (tree.parent[before] === tree.parent[node]) {
          assert.ok(!(by[node] > by[before]) && !(Number.isNaN(by[before]) && !Number.isNaN(by[node])), "falling, missing last");
          assert.equal(move(tree, node, "left"), before);
          assert.equal(move(tree, before, "right"), node);
        }
      }
    }
    const width = 900;
    const leaf = tree.leafOrder[random.below(tree.leafOrder.length)];
    const middle = ((tree.x[leaf] + tree.width[leaf] / 2) / tree.total) * width;
    assert.equal(hit(tree, fit(tree), width, 26, middle, 26 * tree.depth[leaf] + 3), leaf);
    assert.equal(hit(tree, fit(tree), width, 26, middle, 26 * (tree.maxDepth + 1) + 3), leaf);
  }
});

/** A root and a node for every credit state, as `trainer.tree.CreditState` numbers them. */
function states() {
  const words = ["none", "credited", "dropped_by_filter", "only_child", "no_reward", "per_path", "not_selected", "given", "no_advantage"];
  const n = 1 + words.length;
  const advantage = Float32Array.from([NaN, NaN, 0.5, ...Array(n - 3).fill(NaN)]);
  return {
    n, advantage, n_children: Uint8Array.from([n - 1, ...Array(n - 1).fill(0)]), mismatch: null, cliff: null,
    credit_state: Uint8Array.from([0, ...words.keys()]), value: Float32Array.from([0.5, ...Array(n - 1).fill(NaN)]), entropy: new Float32Array(n),
    copies: Int32Array.from([0, 1, 3, ...Array(n - 3).fill(1)]), visits: new Int32Array(n).fill(4), tokens: new Int32Array(n).fill(2),
    verdict: new Uint8Array(n), finish: new Uint8Array(n), logprob: new Float32Array(n),
    labels: { verdict: ["none"], finish: ["none"], credit_state: words, credit: words.map((word) => (word === "credited" || word === "none" ? "" : `say ${word}`)) },
  };
}

test("only what could have had credit and has none is hatched", () => {
  const columns = states();
  const { parent } = shapeOf(columns.n_children);
  const byAdvantage = [...Array(columns.n).keys()].map((node) => look(columns, signalOf({ columns, parent }, "advantage", "light"), node));
  assert.deepEqual(byAdvantage, ["context", "hatched", "credit", "hatched", "hatched", "hatched", "plain", "hatched", "context", "plain"]);
  const byValue = [...Array(columns.n).keys()].map((node) => look(columns, signalOf({ columns, parent }, "value", "light"), node));
  assert.equal(byValue[8], "context", "what was given is context whatever the colour is");
  assert.equal(byValue[6], "hatched", "a missing value has one reason");
  assert.deepEqual([lookOf(5, false), lookOf(7, false), lookOf(8, false), lookOf(2, false), lookOf(2, true)], ["plain", "context", "plain", "hatched", "context"]);
});

test("a leaf is as wide as the answers that ended in it", () => {
  // SMALL's leaves from left to right are 3 7 5 6; leaf 7 stands for three answers.
  const copies = [0, 0, 0, 1, 0, 1, 1, 3];
  const tree = layout(SMALL, copies);
  assert.deepEqual([...tree.leafOrder], [3, 7, 5, 6]);
  assert.equal(tree.leaves[0], 6);
  assert.equal(tree.leaves[7], 3);
  assert.equal(tree.leaves[tree.parent[7]], 3);
  assert.equal(tree.x[5], 4);
  assert.deepEqual([...countBelow(tree, [0, 0, 0, 1, 0, 2, 1, 1], 1)].filter((_, i) => [0, 7].includes(i)), [5, 3]);
  // From an answer to the next one like it, never to itself.
  assert.equal(nextAlike(tree, [0, 0, 0, 1, 0, 1, 2, 2], 7, 1), 6);
  assert.equal(nextAlike(tree, [0, 0, 0, 1, 0, 1, 1, 2], 7, 1), 7);
  assert.deepEqual([...layout(SMALL).x], [...layout(SMALL, SMALL.map(() => 1)).x]);
});

test("equal answers, visits and missing credit are said", () => {
  const columns = states();
  assert.deepEqual([times(columns, 1), times(columns, 2)], ["", "×3"]);
  assert.match(spoken(columns, 2, "2", 0, 3), /0 of 3 correct, advantage plus 0.50, 3 equal answers, 2 tokens, 4 visits$/);
  assert.match(spoken(columns, 6, "6", 0, 1), /say per_path/);
  assert.equal(withoutCredit(columns, 1), "no credit");
  assert.deepEqual([advantageWords(columns, 2), advantageWords(columns, 6), advantageWords(columns, 9)], ["A +0.500", "say per_path", ""]);
  assert.ok(!spoken(columns, 9, "9", 0, 1).includes("no_advantage"), "nothing is said of what the whole run has not");
  columns.visits[2] = 1;
  assert.deepEqual([visitWords(columns, 1), visitWords(columns, 2)], ["4 visits", "1 visit"]);
});
