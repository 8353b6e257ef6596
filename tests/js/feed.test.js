import assert from "node:assert/strict";
import test from "node:test";

import { apply, emptyFeed, MAX_POINTS } from "../../webapp/static/js/live/feed.js";
import { seeded } from "./random.js";

const state = (last_seq, more = {}) => ({ id: 7, name: "r", status: "running", reason: "", step: 0, steps_total: 9, phase: "", phase_done: 0, phase_total: 0, phase_words: "", last_seq, heartbeat_age_s: 1, eta_s: null, worker: "w", wish: null, wish_age_s: null, shown: "running", actions: [], latest: {}, ...more });
const metrics = (seq, step, values) => ({ seq, kind: "metrics", step, at: 1000 + seq, epoch: 1, values });
const frame = (events, more = {}) => ({ type: "frame", run: 7, first_seq: events[0].seq, last_seq: events.at(-1).seq, events, state: state(events.at(-1).seq), ...more });
/** What a reader can see of a feed. */
const seen = (feed) => ({
  cursor: feed.cursor,
  series: Object.fromEntries([...feed.series].map(([name, s]) => [name, { step: s.step, value: s.value, n: s.n, nonfinite: s.nonfinite }])),
  marks: feed.marks,
  trees: [...feed.trees],
});

/** A run of 120 events with every kind, one restart, and values that are not finite. */
function history() {
  const events = [];
  const push = (event) => events.push({ seq: events.length + 1, at: 1000 + events.length, epoch: 1, step: null, ...event });
  push({ kind: "status", status: "queued" });
  push({ kind: "started", step: 0 });
  for (let step = 1; step <= 30; step++) {
    push({ kind: "tree", step, tree: { value: step % 5 ? step / 30 : null } });
    push({ kind: "metrics", step, values: { "reward/mean": step / 100, "policy/loss": step % 7 ? step : { v: null, k: "nan" } } });
    if (step % 10 === 0) push({ kind: "checkpoint", step });
    if (step === 25) push({ kind: "started", step: 20, epoch: 2 });
    if (step === 25) for (let again = 21; again <= 25; again++) push({ kind: "metrics", step: again, values: { "reward/mean": again / 50 } });
  }
  return events;
}

test("one frame puts points, marks and trees in their places", () => {
  const feed = apply(emptyFeed(7), frame([
    { seq: 1, kind: "started", step: 0, at: 1, epoch: 1 },
    metrics(2, 1, { "reward/mean": 0.25, "policy/loss": { v: null, k: "inf" } }),
    { seq: 3, kind: "tree", step: 1, at: 3, epoch: 1, tree: { value: 0.5 } },
    { seq: 4, kind: "checkpoint", step: 1, at: 4, epoch: 1 },
  ]));
  assert.deepEqual(seen(feed), {
    cursor: 4,
    series: {
      "reward/mean": { step: [1], value: [0.25], n: [1], nonfinite: [] },
      "policy/loss": { step: [], value: [], n: [], nonfinite: [{ step: 1, k: "inf" }] },
    },
    marks: [{ seq: 4, step: 1, kind: "checkpoint", text: "checkpoint of step 1" }],
    trees: [[1, { n: 1, value: 0.5 }]],
  });
  assert.equal(feed.lastAt, 4);
});

test("a message that comes twice changes nothing", () => {
  const message = frame([metrics(1, 1, { "reward/mean": 0.5 }), metrics(2, 2, { "reward/mean": 0.6 })]);
  const once = apply(emptyFeed(7), message);
  assert.deepEqual(seen(apply(once, message)), seen(once));
});

test("a message about another run is not ours", () => {
  const feed = emptyFeed(7);
  assert.equal(apply(feed, { ...frame([metrics(1, 1, { a: 1 })]), run: 8 }), feed);
  assert.equal(apply(feed, { type: "summary", project: "lab", runs: [] }), feed);
});

test("a gap is not applied, and asks again from the cursor", () => {
  const first = apply(emptyFeed(7), frame([metrics(1, 1, { "reward/mean": 0.5 })]));
  const gapped = apply(first, frame([metrics(3, 3, { "reward/mean": 0.7 })]));
  assert.equal(gapped.wants, "resubscribe");
  assert.deepEqual(seen(gapped), seen(first));
  const healed = apply(gapped, frame([metrics(2, 2, { "reward/mean": 0.6 }), metrics(3, 3, { "reward/mean": 0.7 })]));
  assert.equal(healed.wants, "");
  assert.deepEqual(healed.series.get("reward/mean").value, [0.5, 0.6, 0.7]);
});

test("a frame that overlaps what is known adds only the new part", () => {
  const first = apply(emptyFeed(7), frame([metrics(1, 1, { a: 1 }), metrics(2, 2, { a: 2 })]));
  const both = apply(first, frame([metrics(2, 2, { a: 99 }), metrics(3, 3, { a: 3 })]));
  assert.deepEqual(both.series.get("a").value, [1, 2, 3]);
});

test("any split into frames, with repeats, losses and swaps, ends in the same feed", () => {
  const events = history();
  const whole = seen(apply(emptyFeed(7), frame(events)));
  for (let seed = 1; seed <= 300; seed++) {
    const random = seeded(seed);
    let feed = emptyFeed(7);
    let cursor = 0;
    let guard = 0;
    while (feed.cursor < events.length && guard++ < 10_000) {
      // The server sends from where it stands; sometimes it is lost, sent twice, or sent too late.
      const size = 1 + random.below(12);
      const start = Math.max(0, cursor - random.below(3));
      const part = events.slice(start, start + size);
      if (!part.length) { cursor = feed.cursor; continue; }
      cursor = start + part.length;
      const dice = random.next();
      if (dice < 0.2) continue;
      feed = apply(feed, frame(part));
      if (dice > 0.8) feed = apply(feed, frame(part));
      if (feed.wants === "resubscribe") {
        cursor = feed.cursor;
        feed = apply(feed, { type: "subscribed", run: 7, last_seq: events.length });
      }
    }
    assert.deepEqual(seen(feed), whole, `seed ${seed}`);
  }
});

test("a new attempt hides what the earlier one did after its checkpoint", () => {
  const feed = apply(emptyFeed(7), frame(history()));
  const reward = feed.series.get("reward/mean");
  assert.deepEqual(reward.step, Array.from({ length: 30 }, (_, i) => i + 1));
  assert.equal(reward.value[19], 0.2);
  assert.equal(reward.value[20], 0.42); // step 21, of the second attempt
  assert.ok(!feed.series.get("policy/loss").nonfinite.some(({ step }) => step === 21));
  assert.ok(feed.marks.some((mark) => mark.text === "resumed from step 20"));
});

test("resync waits for a reload, and the reload goes on from its own event", () => {
  let feed = apply(emptyFeed(7), frame([metrics(1, 1, { a: 1 })]));
  feed = apply(feed, { type: "resync", run: 7, last_seq: 900 });
  assert.equal(feed.wants, "reload");
  feed = apply(feed, frame([metrics(901, 901, { a: 9 })]));
  assert.equal(feed.wants, "reload");
  assert.equal(feed.cursor, 1);
  const wire = { name: "a", n_points: 900, bucketed: true, step: [1, 400], value: [1, 2], min: [0, 1], max: [3, 4], n: [400, 500], nonfinite: [{ step: 5, k: "nan" }] };
  feed = apply(feed, { type: "loaded", run: 7, last_seq: 900, series: [wire] });
  assert.equal(feed.wants, "");
  feed = apply(feed, frame([metrics(901, 901, { a: 9 })]));
  assert.deepEqual(feed.series.get("a").step, [1, 400, 901]);
  assert.deepEqual(feed.series.get("a").max, [3, 4, 9]);
  assert.deepEqual(feed.series.get("a").nonfinite, [{ step: 5, k: "nan" }]);
});

test("a reload that is older than the page changes nothing", () => {
  const feed = apply(emptyFeed(7), frame([metrics(1, 1, { a: 1 }), metrics(2, 2, { a: 2 })]));
  assert.deepEqual(seen(apply(feed, { type: "loaded", run: 7, last_seq: 1, series: [] })), seen(feed));
});

test("an older state does not replace a newer one", () => {
  const feed = apply(emptyFeed(7), { type: "state", run: 7, state: state(10, { step: 5 }) });
  assert.equal(apply(feed, { type: "state", run: 7, state: state(9, { step: 4 }) }).state.step, 5);
  assert.equal(apply(feed, { type: "state", run: 7, state: state(10, { step: 5, phase: "training" }) }).state.phase, "training");
});

test("feeds are never changed in place", () => {
  const before = apply(emptyFeed(7), frame([metrics(1, 1, { a: 1 })]));
  const copy = structuredClone(seen(before));
  apply(before, frame([metrics(2, 2, { a: 2 }), { seq: 3, kind: "started", step: 0, at: 3, epoch: 2 }]));
  assert.deepEqual(seen(before), copy);
});

test("a curve that grew too long asks for buckets", () => {
  const events = Array.from({ length: MAX_POINTS + 1 }, (_, i) => metrics(i + 1, i + 1, { a: i }));
  assert.equal(apply(emptyFeed(7), frame(events.slice(0, -1))).wants, "");
  assert.equal(apply(emptyFeed(7), frame(events)).wants, "reload");
});

test("the check of packed training is noticed once, by its number", () => {
  const check = { seq: 2, kind: "packing_checked", step: 1, at: 1, epoch: 1 };
  const feed = apply(emptyFeed(7), frame([metrics(1, 1, { a: 1 }), check]));
  assert.equal(feed.packingSeq, 2);
  assert.equal(feed.cursor, 2);
  assert.equal(apply(feed, frame([metrics(3, 2, { a: 2 })])).packingSeq, 2);
});
