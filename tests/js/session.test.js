import assert from "node:assert/strict";
import test from "node:test";

/** A browser as far as the live side needs one: its time moves when told, its server does what the test says. */
function browser() {
  let now = 1_000_000;
  let timers = [];
  let next = 1;
  const listeners = {};
  const on = (type, listener) => (listeners[type] ??= []).push(listener);
  const later = (callback, ms, every = 0) => (timers.push({ id: next, at: now + ms, every, callback }), next++);
  const sockets = [];
  const asked = [];
  const page = {
    answers: {},
    sockets,
    asked,
    fire: (type, event = {}) => (listeners[type] ?? []).forEach((listener) => listener(event)),
    /** Promises are done with between timers. */
    async advance(seconds) {
      const end = now + 1000 * seconds;
      for (;;) {
        for (let i = 0; i < 20; i++) await null;
        const due = timers.filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at)[0];
        if (!due) break;
        now = due.at;
        if (due.every) due.at += due.every;
        else timers = timers.filter((timer) => timer !== due);
        due.callback();
      }
      now = end;
    },
  };
  const document = { hidden: false, addEventListener: on, getElementById: () => null, querySelector: () => null };
  Object.assign(globalThis, {
    document,
    location: { protocol: "http:", host: "x" },
    window: { setTimeout: later, clearTimeout: (id) => { timers = timers.filter((timer) => timer.id !== id); }, setInterval: (callback, ms) => later(callback, ms, ms), addEventListener: on },
    requestAnimationFrame: (callback) => later(callback, 16),
    setTimeout: later,
    clearTimeout: (id) => { timers = timers.filter((timer) => timer.id !== id); },
    HTMLElement: class {},
    WebSocket: class {
      constructor() {
        Object.assign(this, { readyState: 0, sent: [], closed: false });
        sockets.push(this);
        if (page.refuses) later(() => this.onclose?.({ code: 1006 }), 1);
      }
      send(text) { this.sent.push(JSON.parse(text)); }
      close() { this.closed = true; }
      accept() { this.readyState = 1; this.onopen(); }
      say(message) { this.onmessage({ data: JSON.stringify(message) }); }
    },
    fetch: async (url) => {
      asked.push(url);
      const answer = page.answers[url.replace("/api/v1", "")];
      if (!answer) throw new TypeError("refused");
      return { ok: true, json: async () => answer };
    },
  });
  Object.defineProperty(globalThis, "performance", { value: { now: () => now }, configurable: true });
  Object.defineProperty(globalThis, "navigator", { value: { onLine: true }, configurable: true });
  Date.now = () => now;
  return page;
}

const state = (step, more = {}) => ({ id: 7, name: "r", status: "running", reason: "", step, last_seq: step, heartbeat_age_s: 1, progress_age_s: 1, latest: {}, ...more });
const frame = (first, last) => ({ type: "frame", run: 7, first_seq: first, last_seq: last, events: [], state: state(last) });

test("a page without a socket reads the same news from its cursor over HTTP, and opens a socket once the server answers", async () => {
  const page = browser();
  const { Session } = await import("../../webapp/static/js/live/session.js");
  const { whyUnreachable } = await import("../../webapp/static/js/core/reach.js");
  page.refuses = true;
  const session = new Session({ onChange: () => undefined }, { curves: false });
  await session.follow(7, state(3));
  await page.advance(40);
  assert.ok(page.asked.length >= 2, "it asked again and again");
  assert.equal(page.asked[0], "/api/v1/runs/7/news?after=3");
  assert.match(whyUnreachable(), /cannot be reached/);
  page.answers["/runs/7/news?after=3"] = { messages: [frame(4, 9)] };
  page.answers["/runs/7/news?after=9"] = { messages: [{ type: "state", run: 7, state: state(9) }] };
  page.refuses = false;
  const before = page.sockets.length;
  await page.advance(10);
  assert.equal(session.feeds.get(7).cursor, 9);
  assert.equal(session.feeds.get(7).state.step, 9);
  assert.ok(page.sockets.length > before, "within ten seconds, whatever the wait had grown to");
  page.sockets.at(-1).accept();
  assert.deepEqual(page.sockets.at(-1).sent, [{ type: "subscribe", run: 7, from_seq: 9 }]);
  page.sockets.at(-1).say({ type: "subscribed", run: 7, last_seq: 9, now: 1000 });
  assert.equal(whyUnreachable(), null);
  const asked = page.asked.length;
  await page.advance(30);
  assert.equal(page.asked.length, asked, "with a socket nothing is asked over HTTP");
});

test("what is known to be unreachable is said, and nothing is sent", async () => {
  const page = browser();
  const { Session } = await import("../../webapp/static/js/live/session.js");
  const { post } = await import("../../webapp/static/js/core/api.js");
  const session = new Session({ onChange: () => undefined }, { curves: false });
  await session.follow(7, state(3));
  page.sockets[0].accept();
  page.sockets[0].say(frame(4, 4));
  page.sockets[0].say({ type: "database", answers: false });
  await assert.rejects(post("/runs/7/stop", {}), /database is unreachable since .* Nothing was sent or queued/);
  page.sockets[0].say({ type: "database", answers: true });
  await page.advance(15); // the server froze
  await assert.rejects(post("/runs/7/stop", {}), /has said nothing for 1\d s/);
  assert.deepEqual(page.asked, []);
});

test("a paused view takes nothing in, keeps what comes for ten minutes, then rests and catches up", async () => {
  const page = browser();
  const { Session } = await import("../../webapp/static/js/live/session.js");
  const drawn = [];
  const rows = [];
  const session = new Session({ onChange: () => drawn.push(session.feeds.get(7).cursor), onSummary: (runs) => rows.push(...runs) }, { curves: false });
  await session.follow(7, state(3));
  page.sockets[0].accept();
  await page.advance(1);
  drawn.length = 0;
  page.fire("keydown", { key: ".", preventDefault() {}, target: null });
  page.sockets[0].say(frame(4, 8));
  page.sockets[0].say({ type: "summary", project: "lab", runs: [state(8)] });
  page.sockets[0].say({ type: "summary", project: "lab", runs: [state(9)] });
  await page.advance(1);
  assert.deepEqual([drawn, rows], [[], []]);
  assert.equal(session.feeds.get(7).cursor, 8, "kept");
  for (let i = 0; i < 31; i++) {
    await page.advance(20);
    page.sockets[0].onmessage?.({ data: '{"type":"ping","now":1}' });
  }
  assert.ok(page.sockets[0].closed, "ten minutes are over");
  session.togglePause();
  assert.deepEqual(rows.map((run) => run.step), [9], "the newest of each row, once");
  await page.advance(1);
  assert.deepEqual(drawn, [8]);
  page.sockets[1].accept();
  assert.deepEqual(page.sockets[1].sent, [{ type: "subscribe", run: 7, from_seq: 8 }]);
});

test("after a cut the table's own rows are read again: one may have ended unseen", async () => {
  const page = browser();
  const { Session } = await import("../../webapp/static/js/live/session.js");
  const rows = [];
  const session = new Session({ onChange: () => undefined, onSummary: (runs) => rows.push(...runs) }, { curves: false });
  session.followProject("lab", [80, 79, 78]);
  page.sockets[0].accept();
  page.sockets[0].say({ type: "subscribed", project: "lab", now: 1000 });
  page.answers["/projects/lab/runs?before=81&limit=3"] = { runs: [state(5, { id: 78, status: "failed" })] };
  page.sockets[0].onclose({ code: 1006 });
  await page.advance(2);
  page.sockets[1].accept();
  page.sockets[1].say({ type: "subscribed", project: "lab", now: 1000 });
  await page.advance(1);
  assert.deepEqual(rows.map((run) => [run.id, run.status]), [[78, "failed"]]);
});

test("a hidden tab rests after a minute and comes back at once", async () => {
  const page = browser();
  const { Session } = await import("../../webapp/static/js/live/session.js");
  const session = new Session({ onChange: () => undefined }, { curves: false });
  await session.follow(7, state(3));
  page.sockets[0].accept();
  page.sockets[0].say(frame(4, 4));
  document.hidden = true;
  page.fire("visibilitychange");
  await page.advance(30);
  page.sockets[0].say({ type: "ping", now: 1 });
  assert.ok(!page.sockets[0].closed);
  await page.advance(31);
  assert.ok(page.sockets[0].closed);
  document.hidden = false;
  page.fire("visibilitychange");
  page.sockets[1].accept();
  assert.deepEqual(page.sockets[1].sent, [{ type: "subscribe", run: 7, from_seq: 4 }]);
});
