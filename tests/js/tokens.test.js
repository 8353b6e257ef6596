// The tokens of a path: decoded, cut, shaded, and formulas found in them.
import assert from "node:assert/strict";
import { test } from "node:test";

import { contrast } from "../../webapp/static/js/core/colour_space.js";
import { layout } from "../../webapp/static/js/tree/layout.js";
import { besideAt, swapped } from "../../webapp/static/js/tree/paths.js";
import { LEVELS, shadingOf, tintsOf } from "../../webapp/static/js/tree/shading.js";
import { formulas, unbroken } from "../../webapp/static/js/tree/formulas.js";
import { chunksOf, decodeTokens, segmentAt, shadesOf, textOf, TOKENS_VERSION } from "../../webapp/static/js/tree/tokens.js";
import { nodeNamed } from "../../webapp/static/js/tree/walk.js";

/** As `webapp/trees/tokens.py` packs it. */
function packed(header, arrays) {
  const parts = [];
  const columns = [];
  let offset = 0;
  for (const [name, array] of Object.entries(arrays)) {
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    const padded = new Uint8Array(Math.ceil(bytes.length / 4) * 4);
    padded.set(bytes);
    columns.push({ name, dtype: { Int32Array: "int32", Uint32Array: "uint32", Uint8Array: "uint8", Float32Array: "float32" }[array.constructor.name], offset, length: array.length });
    parts.push(padded);
    offset += padded.length;
  }
  let head = JSON.stringify({ version: TOKENS_VERSION, ...header, columns });
  while (new TextEncoder().encode(head).length % 4) head += " ";
  const encoded = new TextEncoder().encode(head);
  const buffer = new Uint8Array(4 + encoded.length + offset);
  new DataView(buffer.buffer).setUint32(0, encoded.length, true);
  buffer.set(encoded, 4);
  let at = 4 + encoded.length;
  for (const part of parts) {
    buffer.set(part, at);
    at += part.length;
  }
  return buffer.buffer;
}

/** A prompt of 2 tokens, and "≠😀 x" in 5: half of ≠, the rest of it, 😀, a blank with x, and an end that leaves nothing. */
function path(changes = {}) {
  const segment = (node, count, text, rest = {}) => ({ node, count, text, is_placed: true, is_given: false, advantage: 0.5, words: "", ...rest });
  return packed(
    { n_tokens: 7, top_k: 0, advantage_limit: 2, pieces: { 1: "⟨E2 89⟩", 9: "<|end|>" }, segments: [segment("0", 2, "ab", { is_given: true, advantage: null }), segment("1", 5, "≠😀 x")], ...changes },
    {
      id: Int32Array.of(5, 6, 1, 2, 3, 4, 9),
      end: Uint32Array.of(1, 2, 0, 1, 3, 5, 5),
      logprob: Float32Array.of(0, 0, -1, -2, -3, -4, -0.5),
      entropy: Float32Array.of(0, 0, 0.1, 0.2, 0.4, 3, 0.3),
      trained: Uint8Array.of(0, 0, 1, 1, 0, 1, 1),
    },
  );
}

test("the parts of a segment join to its text, characters of two units and of several tokens included", () => {
  const tokens = decodeTokens(path());
  assert.deepEqual([0, 1, 2, 3, 4, 5, 6].map((i) => textOf(tokens, i)), ["a", "b", "", "≠", "😀", " x", ""]);
  assert.deepEqual([1, 2, 6].map((i) => segmentAt(tokens, i).node), ["0", "1", "1"]);
  assert.equal(tokens.pieces.get(9), "<|end|>");
  for (const segment of tokens.segments) assert.equal(chunksOf(tokens, segment).map((chunk) => chunk.text).join(""), segment.text);
});

test("long segments are cut between tokens, and one whose tokens are not placed stays whole", () => {
  const n = 300;
  const text = "ab".repeat(n);
  const long = (isPlaced) => decodeTokens(packed({ n_tokens: n, top_k: 0, advantage_limit: 1, pieces: {}, segments: [{ node: "1", count: n, text, is_placed: isPlaced, is_given: false, advantage: null, words: "" }] }, {
    id: new Int32Array(n), end: Uint32Array.from({ length: n }, (_, i) => 2 * i + 2), logprob: new Float32Array(n), entropy: new Float32Array(n), trained: new Uint8Array(n),
  }));
  const tokens = long(true);
  const chunks = chunksOf(tokens, tokens.segments[0]);
  assert.deepEqual(chunks.map(({ from, to }) => [from, to]), [[0, 128], [128, 256], [256, 300]]);
  assert.equal(chunks.map((chunk) => chunk.text).join(""), text);
  assert.deepEqual(chunksOf(long(false), long(false).segments[0]), [{ from: 0, to: 0, text }]);
});

test("tokens that do not fit their text are refused", () => {
  assert.throws(() => decodeTokens(path({ version: 99 })), /version 99/);
  assert.throws(() => decodeTokens(path({ n_tokens: 8 })), /Column id is 7/);
  assert.throws(() => decodeTokens(path({ segments: [{ node: "0", count: 7, text: "a", is_placed: true, is_given: false, advantage: null, words: "" }] })), /outside of its segment's text/);
  assert.throws(() => decodeTokens(path().slice(0, 3)), /3 bytes/);
});

test("shading leaves the prompt alone, hatches what did not train, marks what stands out", () => {
  const tokens = decodeTokens(path());
  const entropy = shadingOf(tokens, "entropy", "light");
  assert.deepEqual([0, 2, 5].map((i) => entropy.level(i)), [-1, 4, 16]);
  assert.deepEqual([2, 3, 4, 5, 6].map((i) => entropy.isMarked(i)), [false, false, false, true, false]);
  const advantage = shadingOf(tokens, "advantage", "light");
  assert.deepEqual([0, 2, 4].map((i) => advantage.level(i)), [-1, 10, -1]); // 0.5 of ±2
  assert.deepEqual([0, 2, 4].map((i) => advantage.isHatched(i)), [false, false, true]);
  assert.deepEqual(shadesOf(tokens).includes("mismatch"), false);
});

test("ink stays readable on every tint, on both grounds of both themes", () => {
  const grounds = { light: ["#fbfbfa", "#f4f4f2"], dark: ["#131417", "#0e0f11"] };
  const inks = { light: "#1c1d1f", dark: "#e8e8e6" };
  const over = (tint, ground) => {
    const alpha = parseInt(tint.slice(7), 16) / 255;
    assert.ok(alpha <= 0.45);
    return `#${[1, 3, 5].map((at) => Math.round(parseInt(tint.slice(at, at + 2), 16) * alpha + parseInt(ground.slice(at, at + 2), 16) * (1 - alpha)).toString(16).padStart(2, "0")).join("")}`;
  };
  for (const theme of ["light", "dark"]) {
    for (const kind of ["advantage", "entropy"]) {
      const tints = tintsOf(kind, theme);
      assert.equal(tints.length, LEVELS);
      for (const tint of tints) for (const ground of grounds[theme]) assert.ok(contrast(over(tint, ground), inks[theme]) >= 4.5, `${theme} ${kind} ${tint} on ${ground}`);
    }
  }
});

test("formulas are found, money is not, and the parts join to the text", () => {
  const tex = (text) => {
    const parts = formulas(text);
    assert.equal(parts.map((part) => part.text).join(""), text);
    return parts.filter((part) => part.tex !== null).map((part) => [part.tex, part.isDisplay]);
  };
  assert.deepEqual(tex("so $a \\ge 1$, hence $$x^2$$ and \\(y\\) or \\[z\\]."), [["a \\ge 1", false], ["x^2", true], ["y", false], ["z", true]]);
  assert.deepEqual(tex("It costs $5 and $6, or $ 7 $."), []);
  assert.deepEqual(tex("price \\$5 and $5$00"), []);
  assert.deepEqual(tex("a $b\nc$ d"), []);
  const began = process.cpuUsage().user;
  tex("\\[".repeat(50_000));
  tex("$a ".repeat(50_000));
  assert.ok(process.cpuUsage().user - began < 20e6); // 20 CPU-seconds: only what never ends would take them
});

test("no formula is cut in two by where tokens are cut", () => {
  const cut = ["so $a", " + b$ and ", "$$x", "", "y$$", " end"];
  assert.deepEqual(unbroken(cut), ["so $a + b$", " and ", "$$xy$$", "", "", " end"]);
  assert.equal(unbroken(cut).join(""), cut.join(""));
  assert.deepEqual(unbroken(["plain ", "text"]), ["plain ", "text"]);
});

test("a sibling swaps the rest of the path, as far as it has such children", () => {
  // 0: 1 2; 1: 1.1 1.2; 2: 2.1; 1.2: 1.2.1
  const tree = layout(Int32Array.of(-1, 0, 0, 1, 1, 2, 4), Int32Array.of(0, 0, 0, 1, 0, 1, 1));
  const at = (name) => nodeNamed(tree, name);
  assert.equal(swapped(tree, at("1.2.1"), "1.1"), at("1.1"));
  assert.equal(swapped(tree, at("1.1"), "2"), at("2.1"));
  assert.equal(swapped(tree, at("1.2.1"), "2"), at("2"));
  assert.equal(besideAt(tree, at("1.2.1"), 2, -1), at("1.1"));
  assert.equal(besideAt(tree, at("1.2.1"), 1, 1), at("2"));
  assert.equal(besideAt(tree, at("1.2.1"), 1, -1), -1);
});

test("ratios are tinted on both sides of 1, and clipped tokens are marked", () => {
  const plain = decodeTokens(path());
  assert.equal(shadesOf(plain).includes("ratio"), false);
  const tokens = { ...plain, log_ratio: Float32Array.of(NaN, NaN, 0, 0.4, -0.4, 0.1, NaN), clip: Uint8Array.of(0, 0, 0, 1, 2, 0, 0) };
  assert.equal(shadesOf(tokens).includes("ratio"), true);
  const shading = shadingOf(tokens, "ratio", "light");
  assert.deepEqual([2, 3, 4, 6].map((i) => shading.level(i)), [8, 16, 0, -1]);
  assert.deepEqual([2, 3, 4, 5].map((i) => shading.isMarked(i)), [false, true, true, false]);
});
