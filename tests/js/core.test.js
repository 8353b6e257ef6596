import assert from "node:assert/strict";
import test from "node:test";

import { shapeOf } from "../../webapp/static/js/core/branching.js";
import { duration, figure, number, percent, short, signed } from "../../webapp/static/js/core/format.js";
import { codePoint, parts } from "../../webapp/static/js/core/text.js";
import { changed } from "../../webapp/static/js/core/url_state.js";

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

test("a branching is read from what is typed, or it is not one yet", () => {
  assert.deepEqual(shapeOf("4, 2, 2", 3), [4, 2, 2]);
  assert.deepEqual(shapeOf("4", 3), [4, 4, 4]);
  assert.deepEqual(shapeOf("8", 1), [8]);
  for (const [text, depth] of [["", 3], ["4,2", 3], ["4,x,2", 3], ["0", 2], ["2.5", 2], ["64", 16], ["4", NaN]]) assert.equal(shapeOf(text, depth), null, text);
});
