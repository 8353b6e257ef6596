// The live side of a page about runs: one socket, one feed per run, HTTP where the socket says so or cannot be had.
// Drawing is the page's business: it is told at most once per animation frame, and not at all while the view is paused.
import { json } from "../core/api.js";
import { hasEnded } from "../core/format.js";
import { apply, emptyFeed } from "./feed.js";
import { ATTEMPTS_BEFORE_POLLING, LiveSocket } from "./socket.js";
import { liveWords } from "./words.js";

const POLL_SECONDS = 10;
const REST_AFTER_SECONDS = 60;

/**
 * @typedef {object} SessionHooks
 * @property {(changed: ReadonlySet<number>) => void} onChange runs whose feed changed; once per animation frame
 * @property {(words: {word: string, text: string}) => void} onWords
 * @property {(message: string | null) => void} [onProblem] a sentence for people; null when it is over
 * @property {(runs: RunState[]) => void} [onSummary]
 */

export class Session {
  /** @type {Map<number, Feed>} */ feeds = new Map();
  paused = false;
  #socket;
  #hooks;
  /** @type {number | null} */ #main = null;
  /** @type {Set<number>} */ #changed = new Set();
  #frameAsked = false;
  /** @type {import("./words.js").Situation["connection"]} */ #connection = "connecting";
  /** @type {number | null} */ #lastData = null;
  /** @type {number | null} */ #behind = null;
  #heldFrom = 0;
  /** @type {number | undefined} */ #poll;
  /** @type {number | undefined} */ #rest;
  /** @type {Set<number>} */ #loading = new Set();
  /** With curves, feeds hold all points; without, only what comes live. */ #withCurves;
  /** Age of the heartbeat when it was told, and when that was. */ #heartbeat = { age: 0, at: 0 };

  /** @param {SessionHooks} hooks @param {{curves: boolean}} options */
  constructor(hooks, options) {
    this.#hooks = hooks;
    this.#withCurves = options.curves;
    const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/v1`;
    this.#socket = new LiveSocket(url, { onMessage: (message) => this.#receive(message), onStatus: (status, failures) => this.#status(status, failures) });
    document.addEventListener("visibilitychange", () => this.#visibility());
    window.setInterval(() => this.#tell(), 1000);
  }

  /** The first run followed is the one the status line speaks of. @param {number} run @param {RunState | null} state as rendered by the server */
  async follow(run, state) {
    this.#main ??= run;
    this.feeds.set(run, { ...emptyFeed(run), state });
    if (state) this.#heartbeat = run === this.#main ? { age: state.heartbeat_age_s ?? 0, at: performance.now() } : this.#heartbeat;
    this.#touch(run);
    if (this.#withCurves) await this.#load(run);
    else if (state) this.feeds.set(run, { ...this.#feed(run), cursor: state.last_seq, serverSeq: state.last_seq });
    this.#socket.followRun(run, () => this.#feed(run).cursor);
    this.#socket.connect();
  }

  /** @param {string} slug */
  followProject(slug) {
    this.#socket.followProject(slug);
    this.#socket.connect();
  }

  /** "Pause view": data keeps coming in, the page stays as it is. */
  togglePause() {
    this.paused = !this.paused;
    if (this.paused) this.#heldFrom = this.#mainState()?.step ?? 0;
    else for (const run of this.feeds.keys()) this.#touch(run);
    this.#tell();
  }

  /** @param {number} run @returns {Feed} */
  #feed(run) {
    const feed = this.feeds.get(run);
    if (!feed) throw new Error(`Run ${run} is not followed.`);
    return feed;
  }

  #mainState() {
    return this.#main === null ? null : (this.feeds.get(this.#main)?.state ?? null);
  }

  /** @param {ServerMessage} message */
  #receive(message) {
    if (message.type === "summary") {
      this.#lastData = Date.now();
      this.#hooks.onSummary?.(message.runs);
      return this.#tell();
    }
    if (message.type === "error") {
      this.#hooks.onProblem?.(message.message);
      return;
    }
    if (!("run" in message)) return;
    const before = this.feeds.get(message.run);
    if (!before) return;
    const after = apply(before, message);
    this.#lastData = Date.now();
    if (message.run === this.#main && "state" in message) this.#heartbeat = { age: message.state.heartbeat_age_s ?? 0, at: performance.now() };
    if (message.type === "frame") {
      // A catch-up after a pause is old by nature; only the newest event says how far behind the page is.
      const newest = message.events.at(-1);
      if (newest && message.run === this.#main) this.#behind = Date.now() / 1000 - newest.at;
    }
    if (after === before) return;
    this.feeds.set(message.run, after);
    if (after.wants === "resubscribe") this.#socket.askAgain(message.run);
    else if (after.wants === "reload") void this.#load(message.run);
    this.#touch(message.run);
  }

  /** Curves of a run over HTTP, up to the event they reflect. @param {number} run */
  async #load(run) {
    if (this.#loading.has(run)) return;
    this.#loading.add(run);
    try {
      if (this.#withCurves) {
        const answer = await json(`/runs/${run}/metrics?max_points=1000`);
        this.feeds.set(run, apply(this.#feed(run), { type: "loaded", run, last_seq: answer.last_seq, series: answer.series }));
      } else {
        const feed = this.#feed(run);
        this.feeds.set(run, { ...feed, cursor: feed.serverSeq, wants: "" });
      }
      this.#lastData = Date.now();
      this.#hooks.onProblem?.(null);
      this.#touch(run);
      // Frames that came meanwhile were refused as a gap: go on from here.
      this.#socket.askAgain(run);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      this.#hooks.onProblem?.(`The curves could not be read. ${error.message}`);
      // The wish stays; the next poll or message tries again.
    } finally {
      this.#loading.delete(run);
    }
  }

  /** @param {import("./socket.js").Status} status @param {number} failures */
  #status(status, failures) {
    this.#connection = status;
    window.clearTimeout(this.#poll);
    if (status === "reconnecting" && failures >= ATTEMPTS_BEFORE_POLLING) {
      this.#connection = "polling";
      this.#pollSoon(0);
    }
    this.#tell();
  }

  /** No socket: the same over HTTP. @param {number} seconds */
  #pollSoon(seconds) {
    this.#poll = window.setTimeout(async () => {
      for (const run of this.feeds.keys()) {
        try {
          const state = await json(`/runs/${run}`);
          this.feeds.set(run, apply(this.#feed(run), { type: "state", run, state }));
          if (this.#withCurves) await this.#load(run);
          this.#touch(run);
        } catch (error) {
          if (!(error instanceof Error)) throw error;
          this.#hooks.onProblem?.(`The run could not be read. ${error.message}`);
        }
      }
      if (this.#connection === "polling") this.#pollSoon(POLL_SECONDS);
    }, 1000 * seconds);
  }

  #visibility() {
    window.clearTimeout(this.#rest);
    if (document.hidden) this.#rest = window.setTimeout(() => this.#socket.rest(), 1000 * REST_AFTER_SECONDS);
    else this.#socket.connect();
  }

  /** @param {number} run */
  #touch(run) {
    this.#changed.add(run);
    if (this.#frameAsked || this.paused) return;
    this.#frameAsked = true;
    requestAnimationFrame(() => {
      this.#frameAsked = false;
      if (this.paused) return;
      const changed = new Set(this.#changed);
      this.#changed.clear();
      this.#hooks.onChange(changed);
      this.#tell();
    });
  }

  #tell() {
    const feed = this.#main === null ? null : this.feeds.get(this.#main);
    let state = this.#mainState();
    if (state && !hasEnded(state.status) && state.heartbeat_age_s !== null) {
      // The age goes on growing while nothing is heard.
      const age = this.#heartbeat.age + (performance.now() - this.#heartbeat.at) / 1000;
      state = { ...state, heartbeat_age_s: age };
    }
    this.#hooks.onWords(
      liveWords({
        connection: this.#connection,
        paused: this.paused,
        held: Math.max(0, (state?.step ?? 0) - this.#heldFrom),
        missing: feed ? feed.serverSeq - feed.cursor : 0,
        behind: this.#behind,
        lastData: this.#lastData,
        state,
      }),
    );
  }
}
