import assert from "node:assert/strict";
import test from "node:test";
import { outcomeShares, shadeScale } from "../../webapp/static/js/tree/shades.js";

const cells = (/** @type {(number | null)[]} */ ...means) => means.map((mean, i) => ({ step: i + 1, n_trees: 1, mean }));

test("values are shaded from 0 to 1, other signals from their smallest to their largest mean", () => {
  assert.deepEqual(shadeScale("value", cells(0.2, null, 0.4)), { palette: "value", low: 0, high: 1, flip: false });
  assert.deepEqual(shadeScale("value", cells(-0.5, 3)), { palette: "value", low: -1, high: 3, flip: false });
  assert.deepEqual(shadeScale("tokens", cells(40, null, 60)), { palette: "entropy", low: 40, high: 60, flip: false });
});

test("the deepest drop is the strongest shade", () => {
  assert.deepEqual(shadeScale("cliff", cells(-0.5, -0.25)), { palette: "entropy", low: -0.5, high: -0.25, flip: true });
});

test("a scale without means, or with equal ones, still has two ends", () => {
  assert.deepEqual([shadeScale("depth", cells(null)).low, shadeScale("depth", cells(null)).high], [0, 1]);
  assert.ok(shadeScale("depth", cells(3, 3)).high > 3);
});

test("outcomes of a large tree are shares of its answers, the rest is incorrect", () => {
  assert.deepEqual(outcomeShares("5,1,1,1,10"), [0.5, 0.2, 0.1, 0.1, 0.1]);
  assert.deepEqual(outcomeShares("0,0,0,0,0"), [0, 0, 0, 0, 0]);
});
