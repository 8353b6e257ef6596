// A problem over training, two trees side by side, all trees of a step: the pure parts, against cases worked by hand.
import assert from "node:assert/strict";
import { test } from "node:test";
import { atOrBefore, lineOfPoints, nearestPlace, stacked, tones } from "../../webapp/static/js/problems/film.js";
import { ancestorNamed, linked } from "../../webapp/static/js/problems/linked.js";
import { mergedAt, mergedLayout, wayTo } from "../../webapp/static/js/problems/merged.js";
import { newer } from "../../webapp/static/js/problems/newer.js";
import { colourScale } from "../../webapp/static/js/tree/colour.js";
import { layout } from "../../webapp/static/js/tree/layout.js";
import { nameOf } from "../../webapp/static/js/tree/walk.js";

test("a step shows the newest tree at or before it", () => {
  const steps = [3, 7, 7, 20];
  assert.deepEqual([0, 3, 6, 7, 19, 20, 99].map((step) => atOrBefore(steps, step)), [-1, 0, 0, 2, 2, 3, 3]);
  assert.equal(atOrBefore([], 5), -1);
});

test("an address between two steps goes to the nearer one", () => {
  const steps = [3, 7, 20];
  assert.deepEqual([-5, 4, 6, 13, 14, 99].map((step) => nearestPlace(steps, step)), [0, 0, 1, 1, 2, 2]);
});

test("a curve leaves out what is missing", () => {
  const run = { id: 4, name: "r", colour: 1, turns: [], frames: [], bands: [], band_steps: [], points: [{ step: 1, value: null, solved: 0.5 }, { step: 2, value: 0.25, solved: null }] };
  assert.deepEqual(lineOfPoints(run, "value")?.x, [2]);
  assert.deepEqual(lineOfPoints(run, "solved")?.raw, [0.5]);
  assert.equal(lineOfPoints({ ...run, points: [] }, "value"), null);
});

test("bands fill the column of each tree that has answers, and no run goes on after its last tree", () => {
  const boxes = stacked([{ counts: [1, 0, 2] }, { counts: [3, 0, 0] }], [0, 10, 20], 0, 100);
  assert.deepEqual(boxes, [
    { band: 0, left: 0, right: 0.1, top: 0, bottom: 0.25 },
    { band: 1, left: 0, right: 0.1, top: 0.25, bottom: 1 },
    { band: 0, left: 0.2, right: 0.3, top: 0, bottom: 1 },
  ]);
});

test("right and wrong answers never share a tone, and only judged ones have one", () => {
  const found = tones([...Array(3).fill({ verdict: "correct" }), ...Array(8).fill({ verdict: "incorrect" }), { verdict: "unparsed" }, { verdict: "others" }]);
  assert.ok(found.slice(0, 3).every((tone) => tone !== null && tone > 0));
  assert.ok(found.slice(3, 11).every((tone) => tone !== null && tone < 0));
  assert.deepEqual(found.slice(11), [null, null]);
});

test("the same place in another tree, or the nearest one above it", () => {
  const tree = layout([-1, 0, 0, 1, 1]);
  const at = (/** @type {string} */ name) => {
    const { node, found } = ancestorNamed(tree, name);
    return [nameOf(tree, node), found];
  };
  assert.deepEqual(at("1.2"), ["1.2", true]);
  assert.deepEqual(at("2.1.1"), ["2", false]);
  assert.deepEqual(at("9"), ["0", false]);
  assert.deepEqual(at("0"), ["0", true]);
});

test("two trees share the wider scale", () => {
  const one = { signal: /** @type {const} */ ("advantage"), limit: 1, scale: colourScale("advantage", 1, "light") };
  const two = { signal: /** @type {const} */ ("advantage"), limit: 3, scale: colourScale("advantage", 3, "light") };
  const [a, b] = linked([one, two], "light");
  assert.equal(a?.limit, 3);
  assert.equal(a?.scale.level(1), b?.scale.level(1));
  assert.notEqual(one.scale.level(1), a?.scale.level(1));
});

test("merged nodes lie under their parents, and what ended early leaves room", () => {
  // 0 above; prompts 1 (6 leaves) and 2 (2); below 1: 3 (3 leaves) and 4 (2), one leaf ended at 1 itself.
  const merged = { parent: [-1, 0, 0, 1, 1], bin: [-1, 7, 2, 9, 10], leaves: [8, 6, 2, 3, 2], nodes: [2, 1, 1, 1, 1], low: 0, high: 1, query: "" };
  const places = mergedLayout(merged);
  assert.deepEqual([...places.x], [0, 0, 6, 0, 3]);
  assert.deepEqual([...places.depth], [-1, 0, 0, 1, 1]);
  assert.equal(places.maxDepth, 1);
  assert.deepEqual([0, 5.9, 6, 7.9].map((x) => mergedAt(merged, places, 0, x)), [1, 1, 2, 2]);
  assert.deepEqual([2.9, 3, 5, 7].map((x) => mergedAt(merged, places, 1, x)), [3, 4, -1, -1]);
  assert.deepEqual(wayTo(merged, 4), [7, 10]);
});

test("newer trees are those of the runs on the page, and of runs that began since", () => {
  const known = { 3: 10, 5: 2 };
  const now = [
    { id: 7, n_trees: 1, is_growing: true },
    { id: 5, n_trees: 4, is_growing: false },
    { id: 3, n_trees: 9, is_growing: false }, // an attempt's trees were superseded
    { id: 2, n_trees: 50, is_growing: true }, // one of many older runs, which the page leaves out
  ];
  assert.deepEqual(newer(now, known, false), { count: 3, isGrowing: true });
  assert.deepEqual(newer(now, known, true), { count: 2, isGrowing: false });
  assert.deepEqual(newer([{ id: 3, n_trees: 10, is_growing: false }], known, false), { count: 0, isGrowing: false });
});
