import assert from "node:assert/strict";
import test from "node:test";

import { Blend, Tally, Worst } from "../../webapp/static/js/tree/blend.js";
import { colourScale } from "../../webapp/static/js/tree/colour.js";
import { rangeIn } from "../../webapp/static/js/tree/signals.js";
import { Found } from "../../webapp/static/js/tree/found.js";
import { layout, nodeAt, place } from "../../webapp/static/js/tree/layout.js";
import { TEXT_BLOCK, TextStarts, visible } from "../../webapp/static/js/tree/texts.js";
import { cellsOf, laneBoxes } from "../../webapp/static/js/tree/probe_cells.js";
import { BUDGET, MOST_CHILDREN, MOST_PROBES, Unfolded } from "../../webapp/static/js/tree/unfolded.js";
import { outlineRows } from "../../webapp/static/js/tree/walk.js";
import { randomParents, seeded } from "./random.js";

/** A tree in random order, with values of which some are missing. */
function sample(seed, n = 400) {
  const random = seeded(seed);
  const base = layout(randomParents(random, n));
  const values = Float32Array.from({ length: base.n }, () => (random.next() < 0.3 ? NaN : random.next() * 2 - 1));
  return { random, values, tree: seed % 2 ? base : place(base, { by: values }, base) };
}

test("blended means, tallies and worst verdicts are those of looking at every node", () => {
  for (let seed = 1; seed <= 60; seed++) {
    const { random, values, tree } = sample(seed);
    const verdict = Uint8Array.from({ length: tree.n }, (_, i) => (tree.nChildren[i] ? 0 : 1 + random.below(5)));
    const [blend, worst, tally] = [new Blend(tree, values), new Worst(tree, verdict), new Tally(tree, verdict, 6)];
    for (let row = 0; row <= tree.maxDepth; row++) {
      const from = tree.rowStart[row] + random.below(tree.rowStart[row + 1] - tree.rowStart[row]);
      const to = from + random.below(tree.rowStart[row + 1] - from);
      const nodes = Array.from({ length: to - from + 1 }, (_, i) => nodeAt(tree, from + i));
      const numbered = nodes.filter((node) => !Number.isNaN(values[node]));
      const weight = numbered.reduce((sum, node) => sum + tree.width[node], 0);
      const all = tree.x[nodes.at(-1)] + tree.width[nodes.at(-1)] - tree.x[nodes[0]];
      const slow = weight && weight >= all / 2 ? numbered.reduce((sum, node) => sum + values[node] * tree.width[node], 0) / weight : NaN;
      const found = blend.mean(from, to);
      assert.ok(Number.isNaN(slow) ? Number.isNaN(found) : Math.abs(found - slow) < 1e-6, `seed ${seed} row ${row}: ${found} ${slow}`);
      assert.equal(worst.among(from, to), Math.max(...nodes.map((node) => verdict[node])));
    }
    const to = tree.leafOrder.length - 1;
    const from = random.below(to + 1);
    const slow = Array(6).fill(0);
    for (const leaf of tree.leafOrder.slice(from)) slow[verdict[leaf]] += tree.leaves[leaf];
    assert.deepEqual([...tally.between(from, to)], slow);
  }
});

test("what was found is walked through in reading order and found again by any place", () => {
  for (let seed = 1; seed <= 40; seed++) {
    const { random, tree } = sample(seed, 120);
    const nodes = [...Array(tree.n).keys()].filter(() => random.next() < 0.2);
    const found = new Found(tree, nodes, nodes.length);
    const order = seed % 2 ? [...outlineRows(tree, new Set())].filter((node) => nodes.includes(node)) : found.inOrder;
    assert.deepEqual(found.inOrder, order);
    for (let p = 0; p < tree.n; p++) assert.equal(found.any(p, p), found.has(nodeAt(tree, p)));
    if (!nodes.length) { assert.equal(found.next(0, 1), -1); continue; }
    assert.equal(found.next(found.inOrder.at(-1), 1), found.inOrder[0]);
    assert.equal(found.next(found.inOrder[0], -1), found.inOrder.at(-1));
  }
});

test("texts are asked for by the block, once, and hidden characters are numbers", async () => {
  const asked = [];
  const waiting = [];
  const texts = new TextStarts(async (blocks) => {
    asked.push(blocks);
    return Object.fromEntries(blocks.map((block) => [block, Array.from({ length: TEXT_BLOCK }, (_, i) => `text ${block * TEXT_BLOCK + i} \u202e`)]));
  }, (run) => waiting.push(run));
  let told = 0;
  texts.subscribe(() => told++);
  assert.deepEqual([texts.of(0), texts.of(5), texts.of(300)], ["", "", ""]);
  assert.equal(waiting.length, 1, "one request for all that is wanted");
  waiting[0]();
  await new Promise((done) => setTimeout(done));
  assert.deepEqual(asked, [[0, 2]]);
  assert.equal(told, 1);
  assert.equal(texts.of(300), "text 300 ⟨U+202E⟩");
  assert.equal(visible("a\u200bb"), "a⟨U+200B⟩b");
});

test("the graph folds what is beyond its budget and shows whatever is selected", () => {
  // 1 + 30 + 900 + 9000 nodes.
  const parent = [-1];
  for (let level = 0, from = 0, to = 1; level < 3; level++) {
    const width = level === 2 ? 10 : 30;
    for (let node = from; node < to; node++) for (let child = 0; child < width; child++) parent.push(node);
    [from, to] = [to, parent.length];
  }
  const tree = layout(parent);
  const graph = new Unfolded(tree);
  const drawn = (items) => items.reduce((sum, item) => sum + (item.kind === "node" && !tree.nChildren[item.node] ? 1 : item.kind === "node" ? 0 : item.leaves), 0);
  assert.ok(graph.items().length <= 62, "a first look can be read");
  const steps = seeded(3);
  for (let i = 0; i < 60; i++) {
    const node = steps.below(tree.n);
    graph.reveal(node);
    graph.open(node);
    const items = graph.items();
    assert.ok(items.length <= BUDGET, `${items.length} visible`);
    assert.ok(items.some((item) => item.node === node && item.kind !== "more"));
    assert.equal(drawn(items), 9000, "every answer stands somewhere");
    assert.equal(items.some((item) => Number.isNaN(item.x + item.y)), false);
  }
  for (let node = 1; node <= 30; node++) graph.open(node);
  for (let node = 31; node < 931; node++) graph.open(node);
  assert.ok(graph.items().length <= BUDGET);
});

test("of very many children a window is shown, which goes where one looks", () => {
  const tree = layout([-1, ...Array(1000).fill(0)]);
  const graph = new Unfolded(tree, BUDGET, 2000);
  graph.reveal(700);
  const items = graph.items();
  const more = items.filter(({ kind }) => kind === "more");
  assert.equal(items.length, 1 + MOST_CHILDREN + 2);
  assert.equal(more.reduce((sum, { count }) => sum + count, 0), 1000 - MOST_CHILDREN);
  assert.ok(items.some(({ node, kind }) => node === 700 && kind === "node"));
  graph.showFrom(more[1].node);
  assert.ok(graph.items().some(({ node, kind }) => node === more[1].node && kind === "node"));
});

test("in the graph what was sampled by hand hangs from its node, and is no answer of the tree", () => {
  const tree = layout([-1, 0, 0, 1, 1]);
  const graph = new Unfolded(tree);
  const before = graph.items().filter(({ kind }) => kind !== "probe").map(({ node, leaves }) => [node, leaves]);
  const probed = new Map([[1, [{ id: 7, verdicts: "ci", pending: 1 }]], [3, [{ id: 8, verdicts: "u".repeat(20), pending: 0 }]]]);
  assert.equal(graph.hang(probed), true);
  assert.equal(graph.hang(new Map(probed)), false, "nothing is laid out anew for nothing new");
  const items = graph.items();
  const probes = items.filter(({ kind }) => kind === "probe");
  assert.deepEqual(items.filter(({ kind }) => kind !== "probe").map(({ node, leaves }) => [node, leaves]), before);
  assert.deepEqual(probes.filter(({ node }) => node === 1).map(({ probe }) => [probe.id, probe.verdict]), [["7.0", "correct"], ["7.1", "incorrect"], ["", ""]]);
  assert.equal(probes.filter(({ node }) => node === 3).length, MOST_PROBES);
  assert.equal(probes.find(({ node }) => node === 3).probe.earlier, 20 - MOST_PROBES);
  assert.ok(probes.every(({ leaves, parent, node }) => leaves === 0 && parent.node === node));
});

test("the lane of probes: nothing covers anything, all stay inside, and every continuation stands in some box", () => {
  const random = seeded(11);
  for (let turn = 0; turn < 300; turn++) {
    const width = 120 + random.below(900);
    const nodes = 1 + random.below(40);
    const probed = new Map(Array.from({ length: nodes }, (_, node) => [node, Array.from({ length: 1 + random.below(3) }, (_, id) => ({ id, verdicts: "c".repeat(random.below(64)), pending: random.below(2) }))]).filter(([, probes]) => probes.some(({ verdicts, pending }) => verdicts || pending)));
    if (!probed.size) continue;
    const selected = random.below(nodes);
    const left = new Map([...probed.keys()].map((node) => [node, random.below(width)]));
    const boxes = laneBoxes(probed, selected, (node) => [left.get(node), left.get(node) + 30], width).sort((a, b) => a.left - b.left);
    let end = 0;
    for (const box of boxes) {
      assert.ok(box.left >= end - 1e-9 && box.left + box.width <= width + 1e-9, `${box.left}, ${box.width} of ${width} after ${end}`);
      end = box.left + box.width;
    }
    const all = [...probed].reduce((sum, [node, probes]) => sum + cellsOf(probes, node).length, 0);
    const drawn = boxes.reduce((sum, { count }) => sum + count, 0);
    const own = probed.has(selected) ? cellsOf(probed.get(selected), selected).length : 0;
    assert.ok(drawn === all || (own * 6 > width - 80 && drawn >= all - own), `${drawn} of ${all}`);
  }
});

test("a scale puts every number where it reads it back", () => {
  for (const how of [{}, { symlog: true }]) {
    const scale = colourScale("advantage", 4, "light", 0, how);
    for (const value of [-4, -1, -0.05, 0, 0.01, 2, 4]) assert.ok(Math.abs(scale.at(scale.place(value)) - value) < 1e-9, `${value}`);
    assert.equal(scale.place(9), 1);
    assert.equal(scale.level(0), 32);
  }
  const [plain, bent] = [{}, { symlog: true }].map((how) => colourScale("advantage", 4, "light", 0, how));
  assert.ok(bent.level(0.05) > plain.level(0.05) + 2, "small advantages can be told apart");
  const reversed = colourScale("logprob", 0, "light", -2, { reversed: true });
  assert.equal(reversed.fill(reversed.level(-2)), "#63459c");
  assert.deepEqual([rangeIn("-1,2"), rangeIn("2,1"), rangeIn("x,1"), rangeIn(null)], [[-1, 2], null, null, null]);
});
