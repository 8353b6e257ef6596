import assert from "node:assert/strict";
import { test } from "node:test";
import { growingBoxes, growingWords, judgedSoFar } from "../../webapp/static/js/tree/growing_layout.js";

const early = { problem_id: "p", parent: [-1, 0, 0], tokens: [0, 7, 0], finish: [0, 2, 0] };
const later = { problem_id: "p", parent: [-1, 0, 0, 0, 1, 1, 3], tokens: [0, 7, 9, 3, 0, 4, 0], finish: [0, 2, 1, 2, 0, 1, 0] };

test("room is kept for planned children, so a node that stands never moves", () => {
  const before = growingBoxes(early, [4, 2]);
  const after = growingBoxes(later, [4, 2]);
  assert.deepEqual(before.boxes.map(({ left, width }) => [left, width]), [[0, 0.25], [0.25, 0.25]]);
  assert.deepEqual(after.boxes.slice(0, 2).map(({ left, width }) => [left, width]), [[0, 0.25], [0.25, 0.25]]);
  assert.deepEqual(after.boxes.slice(3).map(({ left, width, depth }) => [left, width, depth]), [[0, 0.125, 2], [0.125, 0.125, 2], [0.5, 0.125, 2]]);
  assert.deepEqual(after.boxes.map(({ isWritten }) => isWritten), [true, true, true, false, true, false]);
  assert.equal(before.depth, 2);
});

test("without a plan, or beyond it, children share what there is", () => {
  assert.deepEqual(growingBoxes(early, []).boxes.map(({ left, width }) => [left, width]), [[0, 0.5], [0.5, 0.5]]);
  assert.deepEqual(growingBoxes({ ...early, parent: [-1, 0, 0], tokens: [0, 1, 1] }, [1]).boxes.map(({ width }) => width), [0.5, 0.5]);
  assert.equal(growingBoxes(later, []).depth, 2);
});

test("answers that were judged so far are counted below every node", () => {
  assert.deepEqual([...judgedSoFar(later).judged], [0, 0, 0, 0, 0, 0, 0]);
  const judged = { ...later, verdict: [0, 0, 1, 0, 2, 1, 0] };
  assert.deepEqual([...judgedSoFar(judged).judged], [3, 2, 1, 0, 1, 1, 0]);
  assert.deepEqual([...judgedSoFar(judged).correct], [2, 1, 1, 0, 0, 1, 0]);
  assert.match(growingWords(judged), / · 2\/3 ✓ so far$/);
});

test("words count what is written", () => {
  assert.equal(growingWords(early), "1 segment · 1 being written · 7 tokens so far");
});
