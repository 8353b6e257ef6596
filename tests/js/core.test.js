import assert from "node:assert/strict";
import test from "node:test";

import { cells, rowsOf, shapeInWords } from "../../webapp/static/js/core/branching.js";
import { axisLabels, duration, figure, number, percent, short, signed } from "../../webapp/static/js/core/format.js";
import { farRate, sameValue, shown } from "../../webapp/static/js/core/knobs.js";
import { filterPresets } from "../../webapp/static/js/core/presets.js";
import { codePoint, parts } from "../../webapp/static/js/core/text.js";
import { changed } from "../../webapp/static/js/core/url_state.js";

test("the labels of an axis tell its places apart", () => {
  assert.deepEqual(axisLabels([0.99985, 0.9999, 0.99995, 1]), ["0.99985", "0.9999", "0.99995", "1"]);
  assert.deepEqual(axisLabels([-0.2, 0, 0.2]), ["−0.2", "0", "0.2"]);
  assert.deepEqual(axisLabels([0, 10_000, 20_000]), ["0", "10k", "20k"]);
  for (const start of [0.3, 1, 99_999, 1e9]) {
    const labels = axisLabels(Array.from({ length: 6 }, (_, i) => start + (i * start) / 1e7));
    assert.equal(new Set(labels).size, 6, labels.join(" "));
  }
  assert.deepEqual(axisLabels([5]), ["5"]);
});

test("numbers read as the server writes them", () => {
  assert.equal(number(0.4123), "0.412");
  assert.equal(number(-1234.5, 1), "−1,234.5");
  assert.equal(number(0.00001), "1.00e−05");
  assert.equal(number(null), "—");
  assert.equal(number(NaN), "—");
  assert.equal(number(1234567, 0), "1,234,567");
  assert.equal(signed(0.4), "+0.400");
  assert.equal(signed(-0.4, 1), "−0.4");
  assert.equal(percent(0.563), "56 %");
  assert.equal(percent(null), "—");
});

test("durations are two units long", () => {
  assert.deepEqual([0.42, 41, 60, 3670, 11_400, 90_000, null].map(duration), ["0.4 s", "41 s", "1 min", "1 h 1 min", "3 h 10 min", "1 d 1 h", "—"]);
});

test("figures keep the digits a reader needs", () => {
  assert.deepEqual([0.12345, 12.345, 123.45, 12345, 0.0000123, 0].map(figure), ["0.123", "12.35", "123.5", "12,345", "1.23e−5", "0.000"]);
  assert.deepEqual([950, 12_000, 3_400_000].map(short), ["950", "12k", "3.4M"]);
});

test("hidden characters are found, and nothing is lost", () => {
  const text = "a\u202eb\u0000\n\tc\u200b";
  assert.deepEqual(parts(text).filter((part) => part.hidden).map((part) => codePoint(part.text)), ["U+202E", "U+0000", "U+200B"]);
  assert.equal(parts(text).map((part) => part.text).join(""), text);
  assert.deepEqual(parts("<img src=x onerror=alert(1)>"), [{ text: "<img src=x onerror=alert(1)>", hidden: false }]);
  assert.deepEqual(parts(""), []);
});

test("the query leaves defaults out and keeps commas readable", () => {
  assert.equal(changed("?x=tokens&with=3", { with: "3,4" }), "?x=tokens&with=3,4");
  assert.equal(changed("?x=tokens", { x: null }), "");
});

test("a picture's rows are the server's, and nothing is drawn of nonsense", () => {
  assert.deepEqual(rowsOf("4 8 16"), [4, 8, 16]);
  for (const text of ["", " ", "x", "0", "-3", "2.5"]) assert.deepEqual(rowsOf(text), [], text);
});

test("cells fill the row from edge to edge, and a row that is too fine is one bar", () => {
  const four = cells(4, 100);
  assert.deepEqual(four.map((cell) => cell.left), [0, 25, 50, 75]);
  assert.ok(four.every((cell) => cell.width > 20 && cell.width < 25));
  for (const count of [1, 3, 49, 50]) {
    const made = cells(count, 100);
    assert.equal(made.length, count);
    const last = made[made.length - 1];
    assert.ok(last.left + last.width <= 100 && last.left + last.width > 97);
  }
  assert.deepEqual(cells(51, 100), [{ left: 0, width: 100 }]);
});

test("a shape is told in words, and a guess is called one", () => {
  assert.equal(shapeInWords([4, 8], false), "Shape of one tree: 4, then 8 nodes");
  assert.match(shapeInWords([2, 4], true), /for example 2, then 4/);
  assert.match(shapeInWords([], false), /not known yet/);
});

test("a learning rate far from the preset's is told, in both directions", () => {
  const path = "training.learning_rate";
  assert.equal(farRate(path, "0.0003", "0.1"), "330 times higher: a policy may break");
  assert.equal(farRate(path, "3e-4", "3e-3"), "10 times higher: a policy may break");
  assert.equal(farRate(path, "0.0003", "0.00003"), "10 times lower: it may learn too slowly to see");
  for (const [was, value] of [["0.0003", "0.002"], ["0.0003", "abc"], ["0.0003", "-1"], ["0", "1"], ["0.0003", ""]]) assert.equal(farRate(path, was, value), "");
  assert.equal(farRate("training.steps", "1", "1000"), "");
});

test("knobs are compared by what they mean", () => {
  for (const [kind, one, other] of [
    ["number", "3e-4", "0.0003"], ["integer", " 150 ", "150"], ["integers", "4,2  2", "4, 2, 2"], ["integers", "", " "], ["integers", "04", "4"],
    ["text", " a ", "a"], ["lines", "a\r\nb\n", "a\nb\n"], ["boolean", "true", "true"], ["number", "x", "x"], ["number", "", " "],
  ]) assert.ok(sameValue(kind, one, other), `${kind} ${one}`);
  for (const [kind, one, other] of [
    ["number", "3e-5", "0.0003"], ["integers", "4, 2", "4, 2, 2"], ["text", "a", "b"], ["lines", "a\n", "a"], ["lines", " a", "a"],
    ["boolean", "true", "false"], ["number", "", "0"], ["number", "x", "0"],
  ]) assert.ok(!sameValue(kind, one, other), `${kind} ${one}`);
});

test("a long value is shown short, on one line, and an empty one as missing", () => {
  assert.equal(shown("{question}\n"), "{question}⏎");
  assert.equal(shown(""), "—");
  assert.equal(shown("x".repeat(4000)).length, 60);
});

test("presets are found by any of their words", () => {
  const texts = ["treerpo · tiny treerpo-tiny treerpo trees of lines arxiv:2506.05183", "dr. grpo · tiny dr-grpo-tiny dr-grpo", "rest-mcts* rest-mcts search"];
  assert.deepEqual(filterPresets(texts, ""), [true, true, true]);
  assert.deepEqual(filterPresets(texts, "GRPO"), [false, true, false]);
  assert.deepEqual(filterPresets(texts, "drgrpo"), [false, true, false]);
  assert.deepEqual(filterPresets(texts, "dr grpo"), [false, true, false]);
  assert.deepEqual(filterPresets(texts, "2506 lines"), [true, false, false]);
  assert.deepEqual(filterPresets(texts, "mcts*"), [false, false, true]);
  assert.deepEqual(filterPresets(texts, "(["), [false, false, false]);
});
