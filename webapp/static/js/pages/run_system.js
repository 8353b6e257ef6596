// What a run's engine is at just now, asked for again and again. Hints: late, or lost, is no harm. The curves below are
// run_detail's.
import { ApiError, json } from "../core/api.js";
import { byId, setText } from "../core/dom.js";
import { number } from "../core/format.js";

const ASK_MS = 1000;
const REST_MS = 5000; // after an error

/** @typedef {{running: number, waiting: number, kv_use: number, cached_share: number}} Occupancy */
/** @typedef {{is_active: boolean, phase: string, step: number | null, occupancy: Occupancy | null}} Now */

const section = byId("occupancy");
const percent = (/** @type {number} */ share) => `${number(100 * share, 1)} %`;
const words = /** @type {const} */ ([
  ["running", (/** @type {number} */ count) => number(count, 0)],
  ["waiting", (/** @type {number} */ count) => number(count, 0)],
  ["kv_use", percent],
  ["cached_share", percent],
]);

async function ask() {
  let wait = REST_MS;
  try {
    if (!document.hidden) {
      const now = /** @type {Now} */ (await json(`/runs/${section.dataset.run}/growing`));
      show(now);
      if (!now.is_active) return;
      wait = ASK_MS;
    }
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401 || error.status === 404) return;
  }
  setTimeout(ask, wait);
}

/** @param {Now} now */
function show(now) {
  const found = now.occupancy;
  const note = byId("occupancy-note");
  if (!now.is_active) {
    setText(note, "The run has ended; what its engine did is in the curves below.");
    section.querySelector(".tiles")?.remove();
    return;
  }
  if (found) setText(note, `Step ${number(now.step, 0)} is being sampled.`);
  else setText(note, now.phase ? `Nothing is sampled at this moment: the run is ${now.phase}.` : "Nothing is sampled at this moment.");
  for (const [name, word] of words) {
    if (found) setText(byId(`occupancy-${name}`), word(found[name]));
  }
}

void ask();
