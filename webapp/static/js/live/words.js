// What the status line says about how live the page is. Pure.
import { clock, duration, hasEnded, number } from "../core/format.js";

/** A worker that says nothing for this long is called silent. */
export const SILENT_WORKER_SECONDS = 15;
/** A trainer that says nothing for this long is worth a word: it speaks all the time while it samples and trains. */
export const SILENT_TRAINER_SECONDS = 60;
/** A server that says nothing for this long is called silent: of a run that is worked on it speaks every 5 s, at all every 20 s. */
export const SILENT_SERVER_SECONDS = { worked_on: 12, else: 25 };

/**
 * @typedef {object} Situation
 * @property {"connecting" | "open" | "reconnecting" | "resting" | "refused" | "polling"} connection
 * @property {boolean} databaseAway the server answers, its database does not
 * @property {boolean} paused by the reader
 * @property {number} held steps that came while paused
 * @property {number} missing events the server has and the page has not
 * @property {number | null} behind seconds from the newest event to its arrival
 * @property {number} silence seconds since the server said anything
 * @property {number | null} lastData when the page last heard of the run, browser milliseconds
 * @property {RunState | null} state its ages as of now
 */

/** @param {Situation} now */
export const isServerSilent = (now) =>
  now.connection === "open" && now.silence >= (now.state && now.state.heartbeat_age_s !== null ? SILENT_SERVER_SECONDS.worked_on : SILENT_SERVER_SECONDS.else);

/** @param {string} text @param {number | null} at browser milliseconds */
const since = (text, at) => (at === null ? text : `${text} · last data ${clock(at)}`);

/** When a trainer that does not answer is ended. @param {number} seconds */
export const endedIn = (seconds) => (seconds > 0 ? `ended in ${Math.ceil(seconds)} s` : "being ended");

/** @param {Situation} now @returns {{word: string, text: string}} `word` for style, `text` for people */
export function liveWords(now) {
  const state = now.state;
  if (now.connection === "refused") return { word: "reconnecting", text: "Logged out · reload the page to log in again" };
  if (now.paused) return { word: "paused", text: now.held ? `Paused by you · +${number(now.held, 0)} step${now.held === 1 ? "" : "s"}` : "Paused by you" };
  if (now.connection === "reconnecting") return { word: "reconnecting", text: since("Reconnecting", now.lastData) };
  if (now.databaseAway) return { word: "database", text: since("Database unreachable", now.lastData) };
  if (now.connection === "polling") return { word: "polling", text: "No live connection · reading every 8 s" };
  if (now.connection === "resting") return { word: "paused", text: "Resting while the tab is hidden" };
  if (now.connection === "connecting") return { word: "connecting", text: "Connecting" };
  if (isServerSilent(now)) return { word: "silent", text: since(`Server silent for ${duration(Math.round(now.silence))}`, now.lastData) };
  if (now.missing > 0) return { word: "catching-up", text: `Catching up · ${number(now.missing, 0)} event${now.missing === 1 ? "" : "s"}` };
  if (!state) return { word: "live", text: "Live" };
  if (hasEnded(state.status)) return { word: "finished", text: state.status === "succeeded" ? "Finished" : `Finished · ${state.status}` };
  // Nobody works on it, so nothing here is live but the wait.
  const spoke = state.progress_age_s == null ? null : Date.now() - 1000 * state.progress_age_s;
  if (state.status === "queued") return { word: "waiting", text: "Waiting for a worker" };
  if (state.status === "recovering") return { word: "waiting", text: since("Waiting for a worker", spoke) };
  if (state.status === "paused") return { word: "waiting", text: since("Run paused", spoke) };
  const silent = state.heartbeat_age_s ?? 0;
  if (silent >= SILENT_WORKER_SECONDS) return { word: "silent", text: `Worker silent for ${duration(Math.round(silent))}` };
  if (state.wish_ends_s != null) return { word: "stalled", text: `Trainer does not answer · ${endedIn(state.wish_ends_s)}` };
  if (state.stalled) return { word: "stalled", text: `Stalled · no progress for ${duration(Math.round(state.progress_age_s ?? 0))}` };
  const unheard = state.progress_age_s ?? 0;
  if (unheard >= SILENT_TRAINER_SECONDS) return { word: "live", text: `Live · no word from the trainer for ${duration(Math.round(unheard))}` };
  // A worker whose clock runs ahead makes events that are not yet; that says nothing about the page.
  if (now.behind === null || now.behind < -1) return { word: "live", text: "Live" };
  const behind = Math.max(now.behind, 0);
  return { word: "live", text: `Live · ${behind < 10 ? `${behind.toFixed(1)} s` : duration(behind)} behind` };
}
