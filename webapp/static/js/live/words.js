// What the status line says about how live the page is. Pure.
import { clock, duration, hasEnded, number } from "../core/format.js";

/** A worker that says nothing for this long is called silent. */
export const SILENT_WORKER_SECONDS = 15;

/**
 * @typedef {object} Situation
 * @property {"connecting" | "open" | "reconnecting" | "resting" | "refused" | "polling"} connection
 * @property {boolean} paused by the reader
 * @property {number} held steps that came while paused
 * @property {number} missing events the server has and the page has not
 * @property {number | null} behind seconds from the newest event to its arrival
 * @property {number | null} lastData when the page last heard of the run, browser milliseconds
 * @property {RunState | null} state
 */

/** @param {Situation} now @returns {{word: string, text: string}} `word` for style, `text` for people */
export function liveWords(now) {
  const state = now.state;
  if (now.connection === "refused") return { word: "reconnecting", text: "Logged out · reload the page to log in again" };
  if (now.paused) return { word: "paused", text: now.held ? `Paused by you · +${number(now.held, 0)} steps` : "Paused by you" };
  if (state && hasEnded(state.status) && now.missing <= 0) return { word: "finished", text: "Finished" };
  if (now.connection === "reconnecting") {
    return { word: "reconnecting", text: now.lastData === null ? "Reconnecting" : `Reconnecting · last data ${clock(now.lastData)}` };
  }
  if (now.connection === "polling") return { word: "reconnecting", text: "No live connection · reading every 10 s" };
  if (now.connection === "resting") return { word: "paused", text: "Resting while the tab is hidden" };
  if (now.connection === "connecting") return { word: "connecting", text: "Connecting" };
  if (now.missing > 0) return { word: "catching-up", text: `Catching up · ${number(now.missing, 0)} event${now.missing === 1 ? "" : "s"}` };
  const silent = state?.heartbeat_age_s ?? 0;
  if (silent >= SILENT_WORKER_SECONDS) return { word: "silent", text: `Worker silent for ${duration(Math.round(silent))}` };
  if (state?.status === "queued") return { word: "live", text: "Live · waiting for a worker" };
  return { word: "live", text: now.behind === null ? "Live" : `Live · ${Math.max(now.behind, 0).toFixed(1)} s behind` };
}
