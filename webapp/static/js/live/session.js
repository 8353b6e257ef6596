// The live side of a page about runs: one socket, one feed per run, HTTP where the socket says so or cannot be had.
// Drawing is the page's business: it is told at most once per animation frame, and not at all while the view is paused.
import { ApiError, json } from "../core/api.js";
import { clock, duration, hasEnded } from "../core/format.js";
import { onKeys } from "../core/keys.js";
import { tellReach } from "../core/reach.js";
import { apply, emptyFeed } from "./feed.js";
import { ATTEMPTS_BEFORE_POLLING, LiveSocket } from "./socket.js";
import { StatusLine } from "./status_line.js";
import { isServerSilent, liveWords } from "./words.js";

const POLL_SECONDS = 8; // a page is back within ten seconds of the server
const REST_AFTER_SECONDS = 60;
const HOLD_SECONDS = 600; // a paused view keeps what comes for so long; later it catches up instead
const MAX_ROWS = 200;

/**
 * @typedef {object} SessionHooks
 * @property {(changed: ReadonlySet<number>) => void} onChange runs whose feed changed; once per animation frame
 * @property {(message: string | null) => void} [onProblem] a sentence for people; null when it is over
 * @property {(runs: RunState[]) => void} [onSummary]
 */

export class Session {
  /** @type {Map<number, Feed>} */ feeds = new Map();
  paused = false;
  #socket;
  #hooks;
  #line;
  /** The table's rows: of which project, and before which run. @type {{slug: string, before: number, limit: number} | null} */ #table = null;
  /** Of the table, while the view is paused. @type {Map<number, RunState>} */ #held = new Map();
  /** The page has had a connection and lost it. */ #wasCut = false;
  #databaseAway = false;
  /** The newest HTTP read failed, too. */ #pollFailed = false;
  /** Browser minus server time in seconds, as the fastest message told. */ #skew = Infinity;
  /** @type {number | undefined} */ #hold;
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
  /** When the main run's state was told: its ages go on from there. */ #stateAt = 0;

  /** @param {SessionHooks} hooks @param {{curves: boolean}} options */
  constructor(hooks, options) {
    this.#hooks = hooks;
    this.#withCurves = options.curves;
    const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/v1`;
    this.#socket = new LiveSocket(url, { onMessage: (message) => this.#receive(message), onStatus: (status, failures) => this.#status(status, failures) });
    this.#line = new StatusLine(() => this.togglePause());
    document.addEventListener("visibilitychange", () => this.#visibility());
    window.addEventListener("online", () => this.#socket.hurry());
    window.setInterval(() => {
      this.#socket.look();
      this.#tell();
    }, 1000);
    onKeys({ ".": () => this.togglePause() });
    tellReach(() => this.#whyUnreachable());
  }

  /** The first run followed is the one the status line speaks of. @param {number} run @param {RunState | null} state as rendered by the server */
  async follow(run, state) {
    this.#main ??= run;
    this.feeds.set(run, { ...emptyFeed(run), state });
    if (run === this.#main) this.#stateAt = performance.now();
    this.#touch(run);
    if (this.#withCurves) await this.#load(run);
    else if (state) this.feeds.set(run, { ...this.#feed(run), cursor: state.last_seq, serverSeq: state.last_seq });
    this.#socket.followRun(run, () => this.#feed(run).cursor);
    this.#socket.connect();
  }

  /** @param {string} slug @param {number[]} rows the runs that the page shows, a stretch of the project's */
  followProject(slug, rows) {
    this.#table = { slug, before: Math.max(0, ...rows) + 1, limit: Math.min(Math.max(rows.length, 1), MAX_ROWS) };
    this.#socket.followProject(slug);
    this.#socket.connect();
  }

  /** "Pause view": data keeps coming in, the page stays as it is. */
  togglePause() {
    this.paused = !this.paused;
    window.clearTimeout(this.#hold);
    if (this.paused) {
      this.#heldFrom = this.#mainState()?.step ?? 0;
      // Then nothing more is kept: the page catches up from its cursors when it goes on.
      this.#hold = window.setTimeout(() => this.#socket.rest(), 1000 * HOLD_SECONDS);
    } else {
      this.#socket.connect();
      this.#hooks.onSummary?.([...this.#held.values()]);
      this.#held.clear();
      for (const run of this.feeds.keys()) this.#touch(run);
    }
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
    if (message.type === "ping" || message.type === "subscribed") this.#skew = Math.min(this.#skew, Date.now() / 1000 - message.now);
    if (message.type === "database") {
      this.#databaseAway = !message.answers;
      return this.#tell();
    }
    // Whatever is said, up to now there was nothing more to say.
    if (!this.#databaseAway) this.#lastData = Date.now();
    if (message.type === "ping") return;
    if (message.type === "summary") return this.#showRows(message.runs);
    if (message.type === "error") {
      this.#hooks.onProblem?.(message.message);
      return;
    }
    if (!("run" in message)) return;
    const before = this.feeds.get(message.run);
    if (!before) return;
    const after = apply(before, message);
    if (message.run === this.#main && "state" in message) this.#stateAt = performance.now();
    if (message.type === "frame") {
      // A catch-up after a pause is old by nature; only the newest event says how far behind the page is.
      const newest = message.events.at(-1);
      if (newest && message.run === this.#main) this.#behind = Number.isFinite(this.#skew) ? Date.now() / 1000 - this.#skew - newest.at : null;
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
    if (status !== "open") this.#skew = Infinity;
    if (status === "reconnecting") {
      this.#wasCut = true;
      // Whatever comes next says how the database is.
      this.#databaseAway = false;
      if (failures < ATTEMPTS_BEFORE_POLLING) this.#connection = status;
      else if (this.#connection !== "polling") {
        this.#connection = "polling";
        this.#pollFailed = true;
        this.#pollSoon(0);
      }
    } else {
      this.#connection = status;
      window.clearTimeout(this.#poll);
      // Rows that changed unseen: the socket tells of the newest runs and of those at work.
      if (status === "open" && this.#wasCut) void this.#readRows().catch(() => undefined);
      if (status === "open") this.#wasCut = false;
    }
    this.#tell();
  }

  /** @param {RunState[]} runs */
  #showRows(runs) {
    if (this.paused) for (const run of runs) this.#held.set(run.id, run);
    else this.#hooks.onSummary?.(runs);
    this.#tell();
  }

  async #readRows() {
    if (!this.#table) return;
    const { slug, before, limit } = this.#table;
    const answer = await json(`/projects/${slug}/runs?before=${before}&limit=${limit}`);
    this.#showRows(answer.runs);
  }

  /** Why nothing can be sent now; null when it may be tried. */
  #whyUnreachable() {
    const at = this.#lastData === null ? "" : ` since ${clock(this.#lastData)}`;
    if (this.#connection === "reconnecting" || (this.#connection === "polling" && this.#pollFailed)) return `The server cannot be reached${at}.`;
    if (this.#databaseAway) return `The database is unreachable${at}.`;
    const now = this.#situation();
    return isServerSilent(now) ? `The server has said nothing for ${duration(Math.round(now.silence))}.` : null;
  }

  /** No socket: the same over HTTP. @param {number} seconds */
  #pollSoon(seconds) {
    this.#poll = window.setTimeout(async () => {
      try {
        for (const run of this.feeds.keys()) {
          const answer = await json(`/runs/${run}/news?after=${this.#feed(run).cursor}`);
          for (const message of answer.messages) this.#receive(message);
        }
        await this.#readRows();
        this.#pollFailed = this.#databaseAway = false;
        this.#lastData = Date.now();
        // It answers, so a socket is worth another attempt at once.
        this.#socket.hurry();
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        this.#pollFailed = error.status === 0;
        this.#databaseAway = error.status === 503;
      }
      this.#tell();
      if (this.#connection === "polling") this.#pollSoon(POLL_SECONDS * (0.75 + Math.random() / 4));
    }, 1000 * seconds);
  }

  #visibility() {
    window.clearTimeout(this.#rest);
    if (document.hidden) this.#rest = window.setTimeout(() => this.#socket.rest(), 1000 * REST_AFTER_SECONDS);
    else if (!this.paused) this.#socket.connect();
    if (!document.hidden) this.#socket.hurry();
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

  /** @returns {import("./words.js").Situation} */
  #situation() {
    const feed = this.#main === null ? null : this.feeds.get(this.#main);
    let state = this.#mainState();
    if (state && !hasEnded(state.status)) {
      // Ages go on growing while nothing is heard.
      const more = (performance.now() - this.#stateAt) / 1000;
      const older = (/** @type {number | null | undefined} */ age) => (age == null ? null : age + more);
      const sooner = (/** @type {number | null | undefined} */ left) => (left == null ? null : Math.max(left - more, 0));
      state = { ...state, heartbeat_age_s: older(state.heartbeat_age_s), progress_age_s: older(state.progress_age_s), wish_ends_s: sooner(state.wish_ends_s) };
    }
    return {
      connection: this.#connection === "polling" && this.#pollFailed ? "reconnecting" : this.#connection,
      databaseAway: this.#databaseAway,
      paused: this.paused,
      held: Math.max(0, (state?.step ?? 0) - this.#heldFrom),
      missing: feed ? feed.serverSeq - feed.cursor : 0,
      behind: this.#behind,
      silence: (Date.now() - this.#socket.heardAt) / 1000,
      lastData: this.#lastData,
      state,
    };
  }

  #tell() {
    this.#line.show(liveWords(this.#situation()), { paused: this.paused, canPause: this.paused || !hasEnded(this.#mainState()?.status ?? "") });
  }
}
