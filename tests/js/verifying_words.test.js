import assert from "node:assert/strict";
import { test } from "node:test";

import { asked, spoken } from "../../webapp/static/js/tree/verifying_words.js";

test("of all kinds' knobs only those of the chosen verifier are sent", () => {
  const form = new FormData();
  assert.deepEqual(asked(form), {});
  for (const [name, value] of [["csrfmiddlewaretoken", "x"], ["kind", "numeric"], ["numeric.tolerance", "0.1"], ["regex.pattern", "a"], ["plugin.name", ""]]) form.set(name ?? "", value ?? "");
  assert.deepEqual(asked(form), { verifier: { kind: "numeric", tolerance: "0.1" } });
});

test("what a screen reader hears names the difference", () => {
  assert.equal(spoken({ verdict: "correct", differs: true, recorded: "incorrect", words: "" }), "Verified again: correct, recorded incorrect.");
  assert.equal(spoken({ verdict: null, differs: null, recorded: "correct", words: "It failed." }), "It failed.");
});
