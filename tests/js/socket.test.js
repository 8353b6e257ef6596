import assert from "node:assert/strict";
import test from "node:test";

import { backoffSeconds, CONNECT_SECONDS, LiveSocket, SILENCE_SECONDS } from "../../webapp/static/js/live/socket.js";
import { liveWords } from "../../webapp/static/js/live/words.js";
import { announcer } from "../../webapp/static/js/core/announce.js";

/** Time that moves only when told. */
function fakeClock() {
  let now = 0;
  let timers = [];
  let next = 1;
  return {
    now: () => now,
    setTimeout: (callback, ms) => (timers.push({ id: next, at: now + ms, callback }), next++),
    clearTimeout: (id) => { timers = timers.filter((timer) => timer.id !== id); },
    advance(ms) {
      const end = now + ms;
      for (;;) {
        const due = timers.filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at)[0];
        if (!due) break;
        now = due.at;
        timers = timers.filter((timer) => timer !== due);
        due.callback();
      }
      now = end;
    },
    /** The machine sleeps: the wall clock goes on, timers do not. */
    sleep(ms) {
      now += ms;
      for (const timer of timers) timer.at += ms;
    },
  };
}

/** A server that only does what the test says. */
function fixture() {
  const clock = fakeClock();
  const sockets = [];
  const messages = [];
  const statuses = [];
  const live = new LiveSocket("ws://x/ws/v1", {
    clock,
    random: () => 0.5,
    onMessage: (message) => messages.push(message),
    onStatus: (status, failures) => statuses.push(`${status} ${failures}`),
    open: () => {
      const socket = {
        readyState: 0, sent: [], closed: false, openedAt: clock.now(),
        send: (text) => socket.sent.push(JSON.parse(text)),
        close: () => { socket.closed = true; },
        accept: () => { socket.readyState = 1; socket.onopen(); },
        say: (message) => socket.onmessage({ data: JSON.stringify(message) }),
        drop: (code = 1006) => { socket.readyState = 3; socket.onclose({ code }); },
      };
      sockets.push(socket);
      return socket;
    },
  });
  return { clock, sockets, messages, statuses, live };
}

test("waits double from half a second to fifteen, each half to one and a half of it", () => {
  assert.deepEqual([0, 1, 2, 3, 4, 5, 6, 60].map((n) => backoffSeconds(n, () => 0.5)), [0.5, 1, 2, 4, 8, 15, 15, 15]);
  assert.equal(backoffSeconds(1, () => 0), 0.5);
  assert.equal(backoffSeconds(1, () => 1), 1.5);
});

test("subscribes with the cursors of the moment it connects", () => {
  const { sockets, live } = fixture();
  let cursor = 3;
  live.followRun(12, () => cursor);
  live.followProject("lab");
  live.connect();
  cursor = 40;
  sockets[0].accept();
  assert.deepEqual(sockets[0].sent, [{ type: "subscribe", project: "lab" }, { type: "subscribe", run: 12, from_seq: 40 }]);
  cursor = 55;
  live.askAgain(12);
  assert.deepEqual(sockets[0].sent.at(-1), { type: "subscribe", run: 12, from_seq: 55 });
  live.leaveRun(12);
  assert.deepEqual(sockets[0].sent.at(-1), { type: "unsubscribe", run: 12 });
});

test("reconnects later and later, and from the start again once the server has spoken", () => {
  const { clock, sockets, statuses, live } = fixture();
  live.connect();
  const waits = [];
  for (let i = 0; i < 7; i++) {
    const at = clock.now();
    sockets.at(-1).drop();
    while (sockets.length === i + 1) clock.advance(50);
    waits.push((clock.now() - at) / 1000);
  }
  assert.deepEqual(waits, [0.5, 1, 2, 4, 8, 15, 15]);
  assert.equal(statuses.at(-1), "reconnecting 7");
  sockets.at(-1).accept();
  assert.equal(statuses.at(-1), "reconnecting 7"); // an accepted connection has not proved anything yet
  sockets.at(-1).say({ type: "ping" });
  assert.equal(statuses.at(-1), "open 0");
  sockets.at(-1).drop();
  assert.equal(statuses.at(-1), "reconnecting 1");
});

test("answers pings, and hands on everything else", () => {
  const { sockets, messages, live } = fixture();
  live.connect();
  sockets[0].accept();
  sockets[0].say({ type: "ping" });
  sockets[0].say({ type: "resync", run: 1, last_seq: 2 });
  assert.deepEqual(sockets[0].sent, [{ type: "pong" }]);
  assert.deepEqual(messages, [{ type: "ping" }, { type: "resync", run: 1, last_seq: 2 }]);
});

test("forty seconds of silence are a lost connection; a message in time is not", () => {
  const { clock, sockets, live } = fixture();
  live.connect();
  sockets[0].accept();
  sockets[0].say({ type: "ping" });
  clock.advance(1000 * SILENCE_SECONDS - 1);
  sockets[0].say({ type: "ping" });
  clock.advance(1000 * SILENCE_SECONDS - 1);
  assert.equal(sockets.length, 1);
  clock.advance(1 + 500);
  assert.equal(sockets.length, 2);
  assert.ok(sockets[0].closed);
});

test("a server that takes the connection and never speaks is given up sooner", () => {
  const { clock, sockets, live } = fixture();
  live.connect();
  sockets[0].accept();
  clock.advance(1000 * CONNECT_SECONDS + 500);
  assert.equal(sockets.length, 2);
});

test("after a night asleep the dead connection is found at the first look", () => {
  const { clock, sockets, live } = fixture();
  live.connect();
  sockets[0].accept();
  sockets[0].say({ type: "ping" });
  clock.sleep(8 * 3600 * 1000);
  live.look();
  assert.ok(sockets[0].closed);
  clock.advance(500);
  assert.equal(sockets.length, 2);
});

test("a server that is seen to answer is asked within a second, whatever the wait", () => {
  const { clock, sockets, live } = fixture();
  live.connect();
  for (let i = 0; i < 7; i++) {
    sockets.at(-1).drop();
    if (i < 6) clock.advance(15_000);
  }
  const before = sockets.length;
  live.hurry();
  live.hurry();
  clock.advance(500);
  assert.equal(sockets.length, before + 1);
  clock.advance(10_000); // the wait that was cut short is over, too
  assert.equal(sockets.length, before + 1);
  live.rest();
  live.hurry();
  clock.advance(60_000);
  assert.equal(sockets.length, before + 1);
});

test("does not knock again once the server says that nobody is logged in", () => {
  const { clock, sockets, statuses, live } = fixture();
  live.connect();
  sockets[0].drop(4401);
  clock.advance(60_000);
  assert.equal(sockets.length, 1);
  assert.equal(statuses.at(-1), "refused 0");
});

test("a resting tab holds no connection and comes back with its cursors", () => {
  const { clock, sockets, live } = fixture();
  let cursor = 1;
  live.followRun(5, () => cursor);
  live.connect();
  sockets[0].accept();
  live.rest();
  assert.ok(sockets[0].closed);
  clock.advance(120_000);
  assert.equal(sockets.length, 1);
  cursor = 9;
  live.connect();
  sockets[1].accept();
  assert.deepEqual(sockets[1].sent, [{ type: "subscribe", run: 5, from_seq: 9 }]);
});

const run = (more = {}) => ({ status: "running", heartbeat_age_s: 1, progress_age_s: 1, ...more });
const now = (more = {}) => ({ connection: "open", databaseAway: false, paused: false, held: 0, missing: 0, behind: 0.4, silence: 1, lastData: 0, state: run(), ...more });
const AT = /\d\d:\d\d:\d\d$/;

test("the status line tells live, catching up, paused, lost, silent and finished apart", () => {
  assert.equal(liveWords(now()).text, "Live · 0.4 s behind");
  assert.equal(liveWords(now({ behind: 75 })).text, "Live · 1 min 15 s behind");
  assert.equal(liveWords(now({ missing: 1204 })).text, "Catching up · 1,204 events");
  assert.equal(liveWords(now({ paused: true, held: 312 })).text, "Paused by you · +312 steps");
  assert.match(liveWords(now({ connection: "reconnecting" })).text, /^Reconnecting · last data \d\d:\d\d:\d\d$/);
  assert.match(liveWords(now({ databaseAway: true })).text, /^Database unreachable · last data \d\d:\d\d:\d\d$/);
  assert.equal(liveWords(now({ state: run({ heartbeat_age_s: 45.3 }) })).text, "Worker silent for 45 s");
  assert.equal(liveWords(now({ state: run({ stalled: true, progress_age_s: 720 }) })).text, "Stalled · no progress for 12 min");
  assert.match(liveWords(now({ connection: "refused" })).text, /log in again/);
});

test("a trainer that stands still is told long before its run counts as stalled", () => {
  assert.match(liveWords(now({ state: run({ progress_age_s: 59 }) })).text, /behind$/);
  assert.equal(liveWords(now({ state: run({ progress_age_s: 125 }) })).text, "Live · no word from the trainer for 2 min 5 s");
});

test("a trainer that does not answer to a stop is not called live, and when it is ended is told", () => {
  const stopping = { status: "stopping", progress_age_s: 20 };
  assert.match(liveWords(now({ state: run(stopping) })).text, /^Live/);
  assert.deepEqual(liveWords(now({ state: run({ ...stopping, wish_ends_s: 24.2 }) })), { word: "stalled", text: "Trainer does not answer · ended in 25 s" });
  assert.equal(liveWords(now({ state: run({ ...stopping, wish_ends_s: 0 }) })).text, "Trainer does not answer · being ended");
});

test("a clock that runs ahead is no claim about the page", () => {
  assert.equal(liveWords(now({ behind: -0.2 })).text, "Live · 0.0 s behind");
  assert.equal(liveWords(now({ behind: -7200 })).text, "Live");
  assert.equal(liveWords(now({ behind: null })).text, "Live");
});

test("nothing that nobody works on is called live", () => {
  const dead = { heartbeat_age_s: null, progress_age_s: 30 };
  for (const status of ["succeeded", "stopped", "failed", "cancelled", "queued", "recovering", "paused"]) {
    const { word, text } = liveWords(now({ state: run({ ...dead, status }) }));
    assert.notEqual(word, "live");
    assert.doesNotMatch(text, /Live/);
  }
  assert.equal(liveWords(now({ state: run({ ...dead, status: "succeeded" }) })).text, "Finished");
  assert.equal(liveWords(now({ state: run({ ...dead, status: "failed" }) })).text, "Finished · failed");
  assert.match(liveWords(now({ state: run({ ...dead, status: "recovering" }) })).text, /^Waiting for a worker · last data /);
  assert.match(liveWords(now({ state: run({ ...dead, status: "paused" }) })).text, AT);
  assert.equal(liveWords(now({ missing: 5, state: run({ ...dead, status: "stopped" }) })).text, "Catching up · 5 events");
});

test("an end that was heard before the line was cut is not said to be sure: the run may have been started again", () => {
  assert.match(liveWords(now({ connection: "reconnecting", state: run({ status: "failed", heartbeat_age_s: null }) })).text, /^Reconnecting/);
});

test("a server that says nothing is told apart from a worker that says nothing", () => {
  const silent = now({ silence: 14, state: run({ heartbeat_age_s: 16 }) });
  assert.match(liveWords(silent).text, /^Server silent for 14 s · last data /);
  // Of a run that waits it has less to say.
  assert.equal(liveWords(now({ silence: 14, state: run({ status: "queued", heartbeat_age_s: null }) })).text, "Waiting for a worker");
  assert.match(liveWords(now({ silence: 26, state: run({ status: "queued", heartbeat_age_s: null }) })).text, /^Server silent/);
});

test("screen readers hear at most one sentence per ten seconds, the newest", () => {
  const clock = fakeClock();
  const said = [];
  const announce = announcer((text) => said.push(`${clock.now()} ${text}`), { now: clock.now, later: clock.setTimeout });
  announce("one");
  clock.advance(1000);
  announce("two");
  announce("three");
  clock.advance(30_000);
  announce("four");
  assert.deepEqual(said, ["0 one", "10000 three", "31000 four"]);
});
