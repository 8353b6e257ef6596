import assert from "node:assert/strict";
import test from "node:test";

import { alongStops, hexOf, oklab } from "../../webapp/static/js/core/colour_space.js";
import { advantageLevel, colourScale, LEVELS, sequentialLevel, symmetricLimit, upperLimit, valueRange } from "../../webapp/static/js/tree/colour.js";

const MIDDLE = (LEVELS - 1) / 2;

test("OKLab of white, black and a primary, by the published figures", () => {
  const close = (hex, expected) => oklab(hex).forEach((value, i) => assert.ok(Math.abs(value - expected[i]) < 1e-3, `${hex} ${value}`));
  close("#ffffff", [1, 0, 0]);
  close("#000000", [0, 0, 0]);
  close("#ff0000", [0.628, 0.2249, 0.1258]);
});

test("a colour survives the way to OKLab and back", () => {
  for (const hex of ["#8c2d04", "#f1f1ee", "#0b4a82", "#131417", "#a6d3f7", "#000000", "#ffffff"]) assert.equal(hexOf(oklab(hex)), hex);
});

test("stops are met exactly, and what lies outside is the end", () => {
  const stops = ["#8c2d04", "#f1f1ee", "#0b4a82"];
  assert.deepEqual([-1, 0, 0.5, 1, 2].map((at) => alongStops(stops, at)), ["#8c2d04", "#8c2d04", "#f1f1ee", "#0b4a82", "#0b4a82"]);
});

test("advantages of equal size lie equally far from the middle", () => {
  for (let i = 0; i <= 1000; i++) {
    const advantage = i / 300;
    const [up, down] = [advantageLevel(advantage, 1.7), advantageLevel(-advantage, 1.7)];
    assert.equal(up - MIDDLE, MIDDLE - down, `±${advantage}`);
    assert.ok(up >= MIDDLE && up < LEVELS);
  }
});

test("advantage 0 is exactly the neutral colour, and no credit has none", () => {
  for (const theme of ["light", "dark"]) {
    const scale = colourScale("advantage", 2, theme);
    assert.equal(scale.fill(scale.level(0)), theme === "light" ? "#f1f1ee" : "#2b2e33");
    assert.equal(scale.level(NaN), -1);
    assert.equal(scale.fill(scale.level(99)), theme === "light" ? "#0b4a82" : "#a6d3f7");
    assert.equal(scale.fill(scale.level(-99)), theme === "light" ? "#8c2d04" : "#ffb08a");
  }
});

test("ink on every fill has a contrast of at least 4.5", () => {
  const luminance = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const low = [];
  for (const theme of ["light", "dark"]) {
    for (const signal of ["advantage", "value", "entropy"]) {
      const scale = colourScale(signal, 1, theme);
      for (let level = 0; level < LEVELS; level++) {
        const ratio = contrast(scale.fill(level), scale.ink(level));
        if (ratio < 4.5) low.push(`${theme} ${signal} ${level} ${ratio.toFixed(2)}`);
      }
    }
  }
  assert.deepEqual(low, []);
});

test("sequential scales run from 0 to their limit", () => {
  assert.equal(sequentialLevel(0, 1), 0);
  assert.equal(sequentialLevel(1, 1), LEVELS - 1);
  assert.equal(sequentialLevel(5, 1), LEVELS - 1);
  assert.equal(sequentialLevel(NaN, 1), -1);
  assert.deepEqual([-1, 0, 1, -7].map((value) => sequentialLevel(value, 1, -1)), [0, (LEVELS - 1) / 2, LEVELS - 1, 0]);
});

test("values lie from 0 to 1 unless rewards go further", () => {
  assert.deepEqual(valueRange([]), [0, 1]);
  assert.deepEqual(valueRange([0.5, NaN, 0]), [0, 1]);
  assert.deepEqual(valueRange([-0.25, 0.5]), [-1, 1]);
  assert.deepEqual(valueRange([-3, 2, Infinity]), [-3, 2]);
  const scale = colourScale("value", 1, "light", -1);
  assert.equal(scale.fill(scale.level(-1)), "#f1f4f2");
  assert.deepEqual([scale.low, scale.limit, colourScale("advantage", 2, "light").low], [-1, 1, -2]);
});

test("the symmetric limit is the 98th percentile of sizes, and never zero", () => {
  assert.equal(symmetricLimit(Float32Array.from([NaN, 0, 0])), 1);
  assert.equal(symmetricLimit([-3]), 3);
  assert.equal(symmetricLimit(Array.from({ length: 100 }, (_, i) => (i % 2 ? 1 : -1) * (i + 1))), 98);
  assert.equal(upperLimit([NaN, 0.2], 0.1), 0.2);
  assert.equal(upperLimit([NaN], 0.1), 0.1);
});
