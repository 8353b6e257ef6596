import assert from "node:assert/strict";
import test from "node:test";

import { belongs, chosenPanels, idOf, matches, panelsOf } from "../../webapp/static/js/charts/panels.js";
import { xRange, yRange } from "../../webapp/static/js/charts/scale.js";
import { aligned, lineOf, nearest, readings, startAfter, tableOf, xOf } from "../../webapp/static/js/charts/series.js";
import { smooth, smoothedFigure } from "../../webapp/static/js/charts/smoothing.js";
import { seeded } from "./random.js";

const curve = (name, step, value, more = {}) => ({ name, step, value, min: value, max: value, n: step.map(() => 1), nonfinite: [], bucketed: false, ...more });
const close = (a, b, message) => assert.ok(Math.abs(a - b) < 1e-12, `${message ?? ""} ${a} ≠ ${b}`);

test("smoothing by hand: weights 1, 1/2, 1/4 of the past", () => {
  // (1·4 + ½·2 + ¼·8) / (1 + ½ + ¼) = 7 / 1.75
  const line = smooth([1, 2, 3], [8, 2, 4], 0.5);
  close(line[0], 8);
  close(line[1], (2 + 4) / 1.5);
  close(line[2], 4);
});

test("smoothing agrees with the slow double sum", () => {
  for (let seed = 1; seed <= 50; seed++) {
    const random = seeded(seed);
    const step = [];
    for (let at = 0, i = 0; i < 40; i++) step.push((at += 1 + random.below(5)));
    const value = step.map(() => random.next() * 4 - 2);
    const n = step.map(() => 1 + random.below(4));
    const weight = random.next() * 0.99;
    const fast = smooth(step, value, weight, n);
    step.forEach((at, i) => {
      let [sum, mass] = [0, 0];
      for (let j = 0; j <= i; j++) {
        const share = n[j] * weight ** (at - step[j]);
        sum += share * value[j];
        mass += share;
      }
      close(fast[i], sum / mass, `seed ${seed} point ${i}`);
    });
  }
});

test("what is left of a curve that fell to 0 reads as nothing, small values of a small curve as they are", () => {
  const fallen = [0.6, 0.4, ...new Array(20).fill(0)];
  const line = smooth([...fallen.keys()], fallen, 0.5);
  assert.ok(Number(line.at(-1)) > 0);
  assert.equal(smoothedFigure(line.at(-1), fallen), "≈ 0");
  assert.equal(smoothedFigure(-6e-4, fallen), "\u22120.001");
  assert.equal(smoothedFigure(0.0049, fallen), "0.005");
  assert.equal(smoothedFigure(0, fallen), "0.000");
  assert.equal(smoothedFigure(5.46e-7, [3e-4, 0]), "5.46e\u22127");
  assert.equal(smoothedFigure(null, fallen), "—");
  assert.equal(smoothedFigure(undefined, fallen), "—");
});

test("smoothing leaves a constant alone, and weight 0 leaves everything alone", () => {
  for (const value of smooth([1, 5, 6, 90], [3, 3, 3, 3], 0.93)) close(value, 3);
  assert.deepEqual(smooth([1, 2, 3], [5, 1, 9], 0), [5, 1, 9]);
});

test("twice the points at the same steps' values do not change the line's end", () => {
  const coarse = smooth([0, 10, 20], [1, 1, 1], 0.9);
  const fine = smooth([0, 5, 10, 15, 20], [1, 1, 1, 1, 1], 0.9);
  close(coarse.at(-1), fine.at(-1));
});

test("x by tokens and by time, between known steps and before the first", () => {
  const curves = new Map([
    ["tree/unique_tokens_total", curve("tree/unique_tokens_total", [1, 3], [100, 500])],
    ["speed/step_seconds", curve("speed/step_seconds", [1, 2, 3], [2, 4, 6])],
  ]);
  assert.deepEqual([0, 1, 2, 3, 9].map(xOf("tokens", curves)), [0, 100, 300, 500, 500]);
  assert.deepEqual([0, 1, 2, 3].map(xOf("time", curves)), [0, 2, 6, 12]);
  assert.deepEqual([0, 4].map(xOf("step", curves)), [0, 4]);
  assert.ok(Number.isNaN(xOf("tokens", new Map())(3)));
});

test("time of bucketed steps is mean times points", () => {
  const curves = new Map([["speed/step_seconds", curve("speed/step_seconds", [1, 5], [2, 3], { n: [4, 4], bucketed: true })]]);
  assert.equal(xOf("time", curves)(5), 20);
});

test("an evaluation has its interval as band and is not smoothed", () => {
  const curves = new Map([
    ["eval/a", curve("eval/a", [0, 10, 20], [0.2, 0.6, 0.4])],
    ["eval/a_low", curve("eval/a_low", [0, 10], [0.1, 0.5])],
    ["eval/a_high", curve("eval/a_high", [0, 10], [0.3, 0.7])],
  ]);
  const line = lineOf(3, curves, "eval/a", "step", 0.9, ["eval/a_low", "eval/a_high"]);
  assert.deepEqual(line.smoothed, [0.2, 0.6, 0.4]);
  assert.deepEqual(line.low, [0.1, 0.5, 0.4]);
  assert.deepEqual(line.high, [0.3, 0.7, 0.4]);
});

test("a bucketed curve shows its extremes, a plain one has no band, a missing one no line", () => {
  const bucketed = new Map([["a", { ...curve("a", [1], [2]), min: [0], max: [5], bucketed: true }]]);
  assert.deepEqual(lineOf(1, bucketed, "a", "step", 0.5).high, [5]);
  assert.equal(lineOf(1, new Map([["a", curve("a", [1], [2])]]), "a", "step", 0.5).low, null);
  assert.equal(lineOf(1, new Map(), "a", "step", 0.5), null);
});

test("values that are not finite become ticks at their place", () => {
  const curves = new Map([["a", curve("a", [], [], { nonfinite: [{ step: 4, k: "nan" }] })]]);
  assert.deepEqual(lineOf(1, curves, "a", "step", 0.5).ticks, [{ x: 4, k: "nan" }]);
});

test("lines of several runs share one x column, and gaps stay open", () => {
  const one = lineOf(1, new Map([["a", curve("a", [1, 3], [10, 30])]]), "a", "step", 0);
  const two = lineOf(2, new Map([["a", curve("a", [2, 3], [5, 6])]]), "a", "step", 0);
  const { x, columns } = aligned([one, two]);
  assert.deepEqual(x, [1, 2, 3]);
  assert.deepEqual(columns[0], [10, undefined, 30]);
  assert.deepEqual(columns[4], [undefined, 5, 6]);
  assert.equal(columns.length, 8);
});

test("a filter shows what is logged, and what is not only where nothing else matches", () => {
  const panel = (name, more = {}) => ({ title: name, section: "S", pinned: false, unit: "", metrics: [name], titles: {}, formulas: {}, bands: {}, ...more });
  const all = [panel("reward/mean", { pinned: true }), panel("eval/pass1"), panel("eval/pass_at_2"), panel("policy/kl")];
  const ids = (pattern, logged) => chosenPanels(all, pattern, new Set(logged)).map(idOf);
  assert.deepEqual(ids("", ["eval/pass1"]), ["reward/mean", "eval/pass1"]);
  assert.deepEqual(ids("^eval/", ["eval/pass1"]), ["eval/pass1"]); // no empty panel beside it
  assert.deepEqual(ids("pass_at", ["eval/pass1"]), ["eval/pass_at_2"]); // says that it is not logged
  assert.deepEqual(ids("nothing", ["eval/pass1"]), []);
});

test("a run that ended earlier is not read out under another run's step", () => {
  const long = lineOf(1, new Map([["m", curve("m", [1, 2, 90], [1, 2, 3])]]), "m", "step", 0);
  const short = lineOf(2, new Map([["m", curve("m", [1, 8], [4, 5])]]), "m", "step", 0);
  const told = ({ newest, found }) => [newest, ...found.map(({ line, index, step }) => [line.raw[index], step])];
  assert.deepEqual(told(readings([long, short], null)), [90, [3, null], [5, 8]]);
  assert.deepEqual(told(readings([long, short], 1.2)), [1, [1, null], [4, null]]);
  assert.deepEqual(told(readings([long, short], 88)), [90, [3, null], [undefined, null]]); // it has none there
  assert.deepEqual(told(readings([long, { ...short, earlier: true }], null)), [90, [3, null]]);
  assert.deepEqual(told(readings([], null)), [null]);
});

test("nearest point, also past the ends", () => {
  const line = lineOf(1, new Map([["a", curve("a", [1, 5, 9], [1, 2, 3])]]), "a", "step", 0);
  assert.deepEqual([0, 1, 2.9, 3.1, 12].map((x) => nearest(line, x)), [0, 0, 0, 1, 2]);
  assert.deepEqual([-4, 14, 100].map((x) => nearest(line, x)), [null, null, null]); // it has not begun, it has ended
  assert.equal(nearest({ ...line, x: [] }, 1), null);
});

test("the table has the newest steps first and says what it left out", () => {
  const one = lineOf(1, new Map([["a", curve("a", [1, 2, 3], [10, 20, 30])]]), "a", "step", 0);
  const two = lineOf(2, new Map([["a", curve("a", [3], [5])]]), "a", "step", 0);
  assert.deepEqual(tableOf([one, two], 2), { rows: [{ step: 3, values: [30, 5] }, { step: 2, values: [20, null] }], left: 1 });
});

test("ranges: air around, never below 0 for what is never negative, never above 1 for shares", () => {
  assert.deepEqual(yRange([[0, 1]]), [0, 1]);
  assert.deepEqual(yRange([[NaN, null, undefined, Infinity]]), [0, 1]);
  assert.deepEqual(yRange([[2, 2]]), [1.8, 2.2]);
  const [low, high] = yRange([[-1, 0.5]]);
  assert.ok(low < -1 && high > 0.5);
  assert.equal(yRange([[0, 100]])[1], 106);
  assert.deepEqual(xRange(3, 3, null), [3, 4]);
  assert.deepEqual(xRange(3, 9, [4, 5]), [4, 5]);
  assert.deepEqual(xRange(undefined, undefined, null), [0, 1]);
});

const panel = (section, title, metrics, bands = {}) => ({ section, title, pinned: section === "Learning", unit: "", metrics, titles: {}, formulas: {}, bands });
const catalogue = [
  panel("Learning", "pass@1", ["eval/a", "eval/b"], { "eval/a": ["eval/a_low", "eval/a_high"] }),
  panel("Policy", "Loss", ["policy/loss"]),
];

test("the catalogue first; metrics that no panel shows, nor a band, come last", () => {
  const panels = panelsOf(catalogue, ["eval/a", "eval/a_low", "eval/a_high", "my/metric", "policy/loss", "my/metric"]);
  assert.deepEqual(panels.map(idOf), ["eval/a", "policy/loss", "my/metric"]);
  assert.equal(panels[2].section, "Other");
});

test("what another method logs has no place", () => {
  const panels = panelsOf(catalogue, []);
  const shown = (logged) => panels.filter((panel) => belongs(panel, new Set(logged))).map(idOf);
  assert.deepEqual(shown([]), ["eval/a"]);
  assert.deepEqual(shown(["other/one"]), ["eval/a"]);
  assert.deepEqual(shown(["policy/loss"]), ["eval/a", "policy/loss"]);
});

test("the filter is a regular expression over title and names, and plain text when it is not one", () => {
  const found = (pattern) => panelsOf(catalogue, ["my/metric("]).filter((one) => matches(one, pattern)).map(idOf);
  assert.deepEqual(found("^policy/"), ["policy/loss"]);
  assert.deepEqual(found("pass@|LOSS"), ["eval/a", "policy/loss"]);
  assert.deepEqual(found("metric("), ["my/metric("]);
  assert.equal(found("").length, 3);
});

test("a fork goes on where its ancestors leave off, on every axis", () => {
  // By hand: steps 1 and 2 take 2 s and 4 s, then a fork at step 2 takes 1 s a step, and one of that at step 3 takes 5 s.
  const clocks = (step, seconds, tokens) =>
    new Map([
      ["speed/step_seconds", curve("speed/step_seconds", step, seconds)],
      ["tree/unique_tokens_total", curve("tree/unique_tokens_total", step, tokens)],
      ["r", curve("r", step, step)],
    ]);
  const oldest = { curves: clocks([1, 2], [2, 4], [100, 200]), to: 2 };
  const middle = { curves: clocks([3], [1], [300]), to: 3 };
  const own = clocks([4, 5], [5, 5], [350, 400]);
  assert.deepEqual(startAfter("time", [oldest]), { step: 2, x: 6 });
  const start = startAfter("time", [oldest, middle]);
  assert.deepEqual(start, { step: 3, x: 7 });
  assert.deepEqual(lineOf(9, own, "r", "time", 0, undefined, start)?.x, [12, 17]);
  // The checkpoint carries the count of tokens on.
  assert.deepEqual(lineOf(9, own, "r", "tokens", 0, undefined, startAfter("tokens", [oldest, middle]))?.x, [350, 400]);
  assert.equal(xOf("tokens", own, startAfter("tokens", [oldest, middle]))(3), 300);
  assert.deepEqual(lineOf(9, own, "r", "step", 0, undefined, startAfter("step", [oldest, middle]))?.x, [4, 5]);
  assert.deepEqual(startAfter("time", []), { step: 0, x: 0 });
});
