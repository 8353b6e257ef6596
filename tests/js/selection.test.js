import assert from "node:assert/strict";
import test from "node:test";

import { layout } from "../../webapp/static/js/tree/layout.js";
import { REST_MILLISECONDS, Selection } from "../../webapp/static/js/tree/selection.js";

// 0 has children 1 2; 1 has 1.1 1.2; 2 has 2.1.
const TREE = layout([-1, 0, 0, 1, 1, 2]);

function start(name = "0") {
  const written = [];
  const clock = { at: 10_000 };
  const selection = new Selection(TREE, name, { write: (changes, how) => written.push([changes.n, how]), now: () => clock.at });
  return { selection, written, clock };
}

test("everyone who listens hears of every choice, once, until they leave", () => {
  const { selection } = start("1.2");
  const heard = [];
  const leave = selection.subscribe(({ name }) => heard.push(name));
  selection.choose(5);
  selection.choose(5);
  selection.chooseName("2");
  selection.chooseName("2.9");
  selection.choose(-1);
  leave();
  selection.choose(0);
  assert.deepEqual(heard, ["2.1", "2"]);
  assert.deepEqual([selection.node, selection.name], [0, "0"]);
});

test("Back returns to where the reader rested, not through every key press", () => {
  const { selection, written, clock } = start();
  selection.choose(1);
  clock.at += 100;
  selection.choose(3);
  clock.at += REST_MILLISECONDS + 1;
  selection.choose(0);
  assert.deepEqual(written, [["1", "push"], ["1.1", "replace"], [null, "push"]]);
});

test("what the address says is followed without writing it again, and what does not exist is the root", () => {
  const { selection, written } = start("7.7");
  assert.equal(selection.node, 0);
  const heard = [];
  selection.subscribe(({ node }) => heard.push(node));
  selection.follow("2.1");
  selection.follow("2.1");
  selection.follow(null);
  assert.deepEqual(heard, [5, 0]);
  assert.deepEqual(written, []);
});
