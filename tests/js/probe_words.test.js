import assert from "node:assert/strict";
import { test } from "node:test";

import { asked, spoken } from "../../webapp/static/js/tree/probe_words.js";

const form = (/** @type {Record<string, string>} */ values) => {
  const data = new FormData();
  for (const [name, value] of Object.entries(values)) data.set(name, value);
  return data;
};

test("the form is sent as numbers, and what is none as it was typed", () => {
  const typed = { policy_version: "412", beginning: " a\n", n: "16", temperature: "0.7", max_tokens: "", verify: "on", seed: "", idempotency_key: "k" };
  assert.deepEqual(asked(form(typed)), { policy_version: 412, prefix: " a\n", n: 16, temperature: 0.7, max_tokens: "", verify: true, seed: null, idempotency_key: "k" });
  const { verify, ...unticked } = typed;
  const other = asked(form({ ...unticked, n: "many", seed: "3" }));
  assert.deepEqual([verify, other.verify, other.n, other.seed], ["on", false, "many", 3]);
});

test("what a screen reader hears of a probe", () => {
  const probe = { n_done: 0, n: 16, n_correct: 0, n_scored: 0, is_active: true, status: "queued", words: "Waiting for a worker." };
  assert.equal(spoken(probe), "Waiting for a worker.");
  assert.equal(spoken({ ...probe, status: "running", n_done: 4, n_scored: 4, n_correct: 3 }), "4 of 16 continuations are here, 3 of 4 correct.");
  assert.equal(spoken({ ...probe, is_active: false, status: "done", n_done: 16 }), "16 continuations are here.");
  assert.equal(spoken({ ...probe, is_active: false, status: "failed", n_done: 2, words: "It failed." }), "It failed.");
});
