// One WebSocket per tab: subscriptions with cursors, reconnection, silence. It knows nothing of what the messages mean.

export const SILENCE_SECONDS = 40;
export const CONNECT_SECONDS = 15;
export const ATTEMPTS_BEFORE_POLLING = 5;

/** 0.5 s, doubling to 15 s, each ± 50 %. @param {number} attempt from 0 @param {() => number} random 0..1 */
export const backoffSeconds = (attempt, random = Math.random) => Math.min(15, 0.5 * 2 ** attempt) * (0.5 + random());

/** @typedef {"connecting" | "open" | "reconnecting" | "resting" | "refused"} Status */
/**
 * @typedef {object} Clock
 * @property {(callback: () => void, milliseconds: number) => any} setTimeout
 * @property {(timer: any) => void} clearTimeout
 * @property {() => number} now wall time in milliseconds: timers stand still while a laptop sleeps, this does not
 */
/**
 * @typedef {object} Hooks
 * @property {(message: ServerMessage) => void} onMessage
 * @property {(status: Status, failures: number) => void} onStatus `failures`: attempts in a row that failed
 * @property {(url: string) => WebSocket} [open]
 * @property {Clock} [clock]
 * @property {() => number} [random]
 */

export class LiveSocket {
  /** When the server last said anything; pings count. Wall time in milliseconds. */ heardAt = 0;
  /** @type {WebSocket | null} */ #socket = null;
  /** Run -> its cursor at this moment. @type {Map<number, () => number>} */ #runs = new Map();
  /** @type {string | null} */ #project = null;
  /** @type {Status | null} */ #status = null;
  #failures = 0;
  #wanted = false;
  #hasSpoken = false;
  /** @type {any} */ #retry = null;
  /** @type {any} */ #silence = null;
  #url;
  #hooks;
  #clock;
  #random;

  /** @param {string} url @param {Hooks} hooks */
  constructor(url, hooks) {
    this.#url = url;
    this.#hooks = hooks;
    this.#random = hooks.random ?? Math.random;
    this.#clock = hooks.clock ?? { setTimeout: (callback, ms) => setTimeout(callback, ms), clearTimeout: (timer) => clearTimeout(timer), now: () => Date.now() };
  }

  /** Follow a run from wherever its cursor stands when the connection is made. @param {number} run @param {() => number} cursor */
  followRun(run, cursor) {
    this.#runs.set(run, cursor);
    this.#send({ type: "subscribe", run, from_seq: cursor() });
  }

  /** Ask again from the cursor, after a gap. @param {number} run */
  askAgain(run) {
    const cursor = this.#runs.get(run);
    if (cursor) this.#send({ type: "subscribe", run, from_seq: cursor() });
  }

  /** @param {number} run */
  leaveRun(run) {
    if (this.#runs.delete(run)) this.#send({ type: "unsubscribe", run });
  }

  /** @param {string} slug */
  followProject(slug) {
    this.#project = slug;
    this.#send({ type: "subscribe", project: slug });
  }

  connect() {
    if (this.#wanted) return;
    this.#wanted = true;
    this.#failures = 0;
    this.#open();
  }

  /** The server was seen to answer, or the network to come back: do not sit out the wait. A moment of it stays, so that many tabs do not come at once. */
  hurry() {
    if (!this.#wanted || this.#socket) return;
    this.#clock.clearTimeout(this.#retry);
    this.#retry = this.#clock.setTimeout(() => this.#open(), 1000 * this.#random());
  }

  /** A hidden tab needs no connection; `connect` catches up from the cursors. */
  rest() {
    if (!this.#wanted) return;
    this.#wanted = false;
    this.#drop();
    this.#report("resting");
  }

  /** To be called about every second: finds a connection that died while this machine slept. */
  look() {
    const limit = this.#hasSpoken ? SILENCE_SECONDS : CONNECT_SECONDS;
    if (this.#socket && this.#clock.now() - this.heardAt >= 1000 * limit) this.#closed(this.#socket, 1006);
  }

  #open() {
    if (!this.#failures) this.#report("connecting");
    this.#clock.clearTimeout(this.#retry);
    const socket = (this.#hooks.open ?? ((url) => new WebSocket(url)))(this.#url);
    this.#socket = socket;
    this.#hasSpoken = false;
    this.#listenForSilence();
    socket.onopen = () => {
      if (this.#project !== null) this.#send({ type: "subscribe", project: this.#project });
      for (const [run, cursor] of this.#runs) this.#send({ type: "subscribe", run, from_seq: cursor() });
    };
    socket.onmessage = (event) => {
      // The server spoke: only that counts as a connection, and resets the back-off.
      this.#hasSpoken = true;
      this.#failures = 0;
      this.#listenForSilence();
      this.#report("open");
      const message = /** @type {ServerMessage} */ (JSON.parse(event.data));
      if (message.type === "ping") this.#send({ type: "pong" });
      this.#hooks.onMessage(message);
    };
    socket.onclose = (event) => this.#closed(socket, event.code);
  }

  /** Each change is told once. @param {Status} status */
  #report(status) {
    if (status === this.#status && status !== "reconnecting") return;
    this.#status = status;
    this.#hooks.onStatus(status, this.#failures);
  }

  /** @param {WebSocket} socket @param {number} code */
  #closed(socket, code) {
    if (socket !== this.#socket) return;
    this.#drop();
    if (!this.#wanted) return;
    if (code === 4401) {
      // Not logged in any more: trying again changes nothing.
      this.#wanted = false;
      this.#report("refused");
      return;
    }
    const wait = backoffSeconds(this.#failures, this.#random);
    this.#failures += 1;
    this.#report("reconnecting");
    this.#retry = this.#clock.setTimeout(() => this.#open(), 1000 * wait);
  }

  #listenForSilence() {
    this.heardAt = this.#clock.now();
    this.#clock.clearTimeout(this.#silence);
    const socket = this.#socket;
    const limit = this.#hasSpoken ? SILENCE_SECONDS : CONNECT_SECONDS;
    this.#silence = this.#clock.setTimeout(() => {
      // A dead peer may keep `close` waiting for minutes, so it is not waited for.
      if (socket && socket === this.#socket) this.#closed(socket, 1006);
    }, 1000 * limit);
  }

  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    this.#clock.clearTimeout(this.#silence);
    this.#clock.clearTimeout(this.#retry);
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  /** @param {object} message */
  #send(message) {
    // Not open: `onopen` subscribes to everything, with the cursors of that moment.
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(message));
  }
}
