// The queue, the workers, one worker: what is shown is read again every few seconds, as long as somebody looks.
import { byId, revealScripted, setText } from "../core/dom.js";
import { clock } from "../core/format.js";
import { onKeys } from "../core/keys.js";
import { load } from "../core/regions.js";
import { revealHidden } from "../core/text.js";

const SECONDS = 3;
const SLOW_SECONDS = 10; // after a failure

let last = Date.now();
let paused = false;

/** @param {string} word @param {string} text */
function tell(word, text) {
  const state = byId("live-state");
  state.dataset.word = word;
  setText(state, text);
}

async function look() {
  // What is being chosen is not taken away from under the pointer.
  if (document.hidden || paused || document.querySelector("#live-region :is(button, a):active, #live-region details[open]")) return later(SECONDS);
  const problem = byId("live-problem");
  try {
    await load(location.pathname, ["live-region", "active-runs"]);
    last = Date.now();
    problem.hidden = true;
    revealScripted(byId("live-region"));
    revealHidden(byId("live-region"));
    tell("live", "Live");
    later(SECONDS);
  } catch (error) {
    setText(problem, `What is shown may be old. ${/** @type {Error} */ (error).message}`);
    problem.hidden = false;
    tell("reconnecting", `Reconnecting · last data ${clock(last)}`);
    later(SLOW_SECONDS);
  }
}

/** @param {number} seconds */
const later = (seconds) => void setTimeout(() => void look(), 1000 * seconds);

tell("live", "Live");
later(SECONDS);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && Date.now() - last > 1000 * SECONDS) void look();
});

/** Rows that a reader may go through. */
const rows = () => /** @type {HTMLAnchorElement[]} */ ([...document.querySelectorAll("#live-region tbody .row-link")]);
const row = () => document.activeElement?.closest("tr");
/** @param {number} by */
const go = (by) => {
  const links = rows();
  const at = links.findIndex((link) => link.closest("tr") === row());
  links[Math.min(links.length - 1, at === -1 ? 0 : Math.max(0, at + by))]?.focus();
};
/** @param {string} move */
const press = (move) => {
  const button = row()?.querySelector(`button[value="${move}"]`);
  if (button instanceof HTMLButtonElement) button.click();
};
onKeys({
  j: () => go(1),
  k: () => go(-1),
  "+": () => press("raise"),
  "-": () => press("lower"),
  T: () => press("top"),
  ".": () => {
    paused = !paused;
    tell(paused ? "paused" : "live", paused ? "Paused by you" : "Live");
  },
});
